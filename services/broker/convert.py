"""JetStream's JSON into the messages of `marketprism.broker.v1`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.broker.v1 import broker_pb2

__all__ = ["account_usage", "cluster_node", "consumer", "stream"]

_STORAGE = {
    "file": broker_pb2.STREAM_STORAGE_FILE,
    "memory": broker_pb2.STREAM_STORAGE_MEMORY,
}
_DISCARD = {
    "old": broker_pb2.DISCARD_POLICY_OLD,
    "new": broker_pb2.DISCARD_POLICY_NEW,
}
_RETENTION = {
    "limits": broker_pb2.RETENTION_POLICY_LIMITS,
    "interest": broker_pb2.RETENTION_POLICY_INTEREST,
    "workqueue": broker_pb2.RETENTION_POLICY_WORK_QUEUE,
}
_DELIVER = {
    "all": broker_pb2.DELIVER_POLICY_ALL,
    "new": broker_pb2.DELIVER_POLICY_NEW,
    "last": broker_pb2.DELIVER_POLICY_LAST,
    "last_per_subject": broker_pb2.DELIVER_POLICY_LAST_PER_SUBJECT,
    "by_start_sequence": broker_pb2.DELIVER_POLICY_BY_START_SEQUENCE,
    "by_start_time": broker_pb2.DELIVER_POLICY_BY_START_TIME,
}
_ACK = {
    "explicit": broker_pb2.ACK_POLICY_EXPLICIT,
    "all": broker_pb2.ACK_POLICY_ALL,
    "none": broker_pb2.ACK_POLICY_NONE,
}
_INT32_MAX = 2**31 - 1


def stream(info: Mapping[str, Any], *, server: str, managed: bool) -> broker_pb2.Stream:
    """Convert a stream info.

    `server` names the leader where there is no cluster; `managed` tells whether the
    configuration names the stream.
    """
    config, state = info["config"], info["state"]
    return broker_pb2.Stream(
        config=broker_pb2.StreamConfig(
            name=config["name"],
            subjects=config.get("subjects") or (),
            description=config.get("description", ""),
            storage=_STORAGE.get(config.get("storage", ""), broker_pb2.STREAM_STORAGE_UNSPECIFIED),
            retention=_RETENTION.get(
                config.get("retention", ""), broker_pb2.RETENTION_POLICY_UNSPECIFIED
            ),
            discard=_DISCARD.get(config.get("discard", ""), broker_pb2.DISCARD_POLICY_UNSPECIFIED),
            max_age=_duration(config.get("max_age")),
            max_bytes=_limit(config.get("max_bytes")),
            max_messages=_limit(config.get("max_msgs")),
            max_messages_per_subject=_limit(config.get("max_msgs_per_subject")),
            max_message_bytes=_limit(config.get("max_msg_size")),
            duplicate_window=_duration(config.get("duplicate_window")),
            replicas=int(config.get("num_replicas", 1)),
        ),
        state=broker_pb2.StreamState(
            messages=int(state["messages"]),
            bytes=int(state["bytes"]),
            first_sequence=int(state["first_seq"]),
            first_time=_time(state.get("first_ts")),
            last_sequence=int(state["last_seq"]),
            last_time=_time(state.get("last_ts")),
            consumers=int(state.get("consumer_count", 0)),
            subjects=int(state.get("num_subjects", 0)),
            deleted=int(state.get("num_deleted", 0)),
        ),
        create_time=_time(info.get("created")),
        replicas=_replicas(info, server),
        managed=managed,
    )


def consumer(info: Mapping[str, Any], *, server: str) -> broker_pb2.Consumer:
    """Convert a consumer info; `server` names the leader where there is no cluster."""
    config = info["config"]
    filters = config.get("filter_subjects") or (
        [config["filter_subject"]] if config.get("filter_subject") else []
    )
    delivered, floor = info.get("delivered") or {}, info.get("ack_floor") or {}
    return broker_pb2.Consumer(
        stream=info["stream_name"],
        config=broker_pb2.ConsumerConfig(
            name=info["name"],
            description=config.get("description", ""),
            filter_subjects=filters,
            deliver_policy=_DELIVER.get(
                config.get("deliver_policy", ""), broker_pb2.DELIVER_POLICY_UNSPECIFIED
            ),
            start_sequence=int(config.get("opt_start_seq", 0)),
            start_time=_time(config.get("opt_start_time")),
            ack_policy=_ACK.get(config.get("ack_policy", ""), broker_pb2.ACK_POLICY_UNSPECIFIED),
            ack_wait=_duration(config.get("ack_wait")),
            max_deliver=_limit(config.get("max_deliver")),
            max_ack_pending=_limit(config.get("max_ack_pending")),
            inactive_threshold=_duration(config.get("inactive_threshold")),
            replicas=int(config.get("num_replicas", 0)),
            pause_until=_time(config.get("pause_until")),
        ),
        state=broker_pb2.ConsumerState(
            delivered_sequence=int(delivered.get("stream_seq", 0)),
            acknowledged_sequence=int(floor.get("stream_seq", 0)),
            pending=int(info.get("num_pending", 0)),
            ack_pending=int(info.get("num_ack_pending", 0)),
            redelivered=int(info.get("num_redelivered", 0)),
            waiting=int(info.get("num_waiting", 0)),
            last_delivery_time=_time(delivered.get("last_active")),
            last_ack_time=_time(floor.get("last_active")),
            paused=bool(info.get("paused", False)),
        ),
        create_time=_time(info.get("created")),
        replicas=_replicas(info, server),
    )


def cluster_node(varz: Mapping[str, Any], jsz: Mapping[str, Any]) -> broker_pb2.ClusterNode:
    """Convert what one server says of itself."""
    leader = (jsz.get("meta_cluster") or {}).get("leader")
    return broker_pb2.ClusterNode(
        server_id=str(varz.get("server_id", "")),
        name=str(varz.get("server_name", "")),
        address=f"{varz.get('host', '')}:{varz.get('port', '')}",
        version=str(varz.get("version", "")),
        start_time=_time(varz.get("start")),
        online=True,
        meta_leader=leader is None or leader == varz.get("server_name"),
        connections=int(varz.get("connections", 0)),
        subscriptions=int(varz.get("subscriptions", 0)),
        in_messages=int(varz.get("in_msgs", 0)),
        out_messages=int(varz.get("out_msgs", 0)),
        in_bytes=int(varz.get("in_bytes", 0)),
        out_bytes=int(varz.get("out_bytes", 0)),
        memory_bytes=int(varz.get("mem", 0)),
        cpu_percent=int(varz.get("cpu", 0)),
        slow_consumers=int(varz.get("slow_consumers", 0)),
        storage_bytes=int(jsz.get("storage", 0)),
        memory_storage_bytes=int(jsz.get("memory", 0)),
        streams=int(jsz.get("streams", 0)),
        consumers=int(jsz.get("consumers", 0)),
    )


def account_usage(info: Mapping[str, Any], server: Mapping[str, Any]) -> broker_pb2.AccountUsage:
    """Convert JetStream's account info; the server's own limits stand in for missing ones."""
    limits, api = info.get("limits") or {}, info.get("api") or {}
    return broker_pb2.AccountUsage(
        storage_bytes=int(info.get("storage", 0)),
        storage_limit_bytes=_limit(limits.get("max_storage")) or _limit(server.get("max_storage")),
        memory_bytes=int(info.get("memory", 0)),
        memory_limit_bytes=_limit(limits.get("max_memory")) or _limit(server.get("max_memory")),
        streams=int(info.get("streams", 0)),
        streams_limit=min(_limit(limits.get("max_streams")), _INT32_MAX),
        consumers=int(info.get("consumers", 0)),
        consumers_limit=min(_limit(limits.get("max_consumers")), _INT32_MAX),
        api_requests=int(api.get("total", 0)),
        api_errors=int(api.get("errors", 0)),
    )


def _limit(value: int | None) -> int:
    return max(int(value or 0), 0)


def _duration(nanoseconds: int | None) -> Duration | None:
    if not nanoseconds:
        return None
    duration = Duration()
    duration.FromNanoseconds(int(nanoseconds))
    return duration


def _time(text: str | None) -> Timestamp | None:
    """Convert an RFC 3339 time; None for Go's zero time, which means "never"."""
    if not text or text.startswith("0001-01-01"):
        return None
    timestamp = Timestamp()
    timestamp.FromJsonString(text if text.endswith("Z") else _in_utc(text))
    return timestamp


def _in_utc(text: str) -> str:
    return datetime.fromisoformat(text).isoformat()


def _replicas(info: Mapping[str, Any], server: str) -> list[broker_pb2.Replica]:
    cluster = info.get("cluster") or {}
    leader = str(cluster.get("leader") or server)
    copies = [broker_pb2.Replica(server=leader, leader=True, current=True, online=True)]
    copies += [
        broker_pb2.Replica(
            server=str(copy.get("name", "")),
            current=bool(copy.get("current", False)),
            online=not copy.get("offline", False),
            lag=int(copy.get("lag", 0)),
        )
        for copy in cluster.get("replicas") or ()
    ]
    return copies
