"""Cases in which two connections carry the same books: a planned replacement, and redundancy."""

import fnmatch

from conformance.follower import until
from conformance.scene import Missed, Scene

__all__ = ["one_corrupt", "one_cut", "one_drops", "one_of_two", "rollover", "rollover_with_drops"]

_SECONDS = 40.0


async def rollover(scene: Scene) -> None:
    """Wait for two replacements."""
    await scene.struck()
    await _replacements(scene, 2)


async def rollover_with_drops(scene: Scene) -> None:
    """Lose one frame of fifty while connections are replaced."""
    await scene.fault("drop", stream="book", count=None, probability=0.02)
    await _replacements(scene, 3)
    await scene.rig.venue.clear()
    await scene.struck()


async def one_cut(scene: Scene) -> None:
    """Break one of the two connections that carry the book."""
    await scene.rig.venue.fault("cut", connection=await one_of_two(scene), abort=True)
    await scene.struck()
    await scene.wait("CONNECTED")


async def one_drops(scene: Scene) -> None:
    """Lose a frame on one of the two."""
    await scene.happened(
        await scene.fault("drop", stream="book", connection=await one_of_two(scene))
    )


async def one_corrupt(scene: Scene) -> None:
    """Damage a frame on one of the two."""
    name = await one_of_two(scene)
    await scene.happened(await scene.fault("corrupt", stream="book", connection=name))


async def _replacements(scene: Scene, count: int) -> None:
    def replaced() -> bool:
        return sum(entry.kind == "ROLLED_OVER" for entry in scene.entries("")) >= count

    if not await until(replaced, _SECONDS):
        raise Missed(f"within {_SECONDS:g} s connections were not replaced {count} times")


async def one_of_two(scene: Scene) -> str:
    """Give the venue's name of one of the connections that carry the instrument's book."""
    pattern = scene.rig.facts.book
    native = scene.native.lower()
    names = [
        each["connection"]
        for each in await scene.rig.venue.connections()
        if any(
            fnmatch.fnmatchcase(stream, pattern) and _names(stream.lower(), native)
            for stream in each["streams"]
        )
    ]
    if len(names) < 2:
        raise Missed(f"the book of {scene.symbol} has {len(names)} connections, expected two")
    return str(names[0])


def _names(stream: str, native: str) -> bool:
    return native in stream.replace(":", ".").replace("@", ".").split(".")
