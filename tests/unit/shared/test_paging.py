"""Pages of lists: each item on one page, in order, whatever the size."""

import pytest

from services.shared.errors import InvalidArgument
from services.shared.paging import list_page


def test_pages_give_every_item_once_and_in_order() -> None:
    keyed = [((f"s{number}",), number) for number in range(5)]
    seen: list[int] = []
    token = ""
    while True:
        page, token = list_page(keyed, 2, token, ("numbers", ""))
        assert 1 <= len(page) <= 2
        seen += page
        if not token:
            break
    assert seen == [0, 1, 2, 3, 4]
    assert list_page(keyed, 0, "", ("numbers", "")) == (seen, "")


@pytest.mark.parametrize("size", [-1, 1001])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(InvalidArgument, match="page_size: expected 1 to 1000") as caught:
        list_page([], size, "", ())
    assert caught.value.violations[0].field == "page_size"


def test_a_token_of_another_filter_is_refused() -> None:
    keyed = [(("a",), 1), (("b",), 2)]
    _, token = list_page(keyed, 1, "", ("numbers", "x"))
    with pytest.raises(InvalidArgument, match="page_token"):
        list_page(keyed, 1, token, ("numbers", "y"))
