"""What holds for the columns of every paper."""

import pytest

from common.data.large_sets import LARGE
from common.paper import Paper
from common.spec import ARCHIVE_ORDER_KNOWN, Column
from papers.catalog import PAPERS

COLUMNS = [pytest.param(paper, column, id=f"{paper.name}-{column.name}")
           for paper in PAPERS for columns in paper.columns.values() for column in columns if column.dataset not in LARGE]


@pytest.mark.parametrize(("paper", "column"), COLUMNS)
def test_a_column_keeps_the_authors_images_where_their_archives_order_is_known(paper: Paper, column: Column):
    """Where images are left out of another dataset, the hash of their pixels says which; a column that keeps all says nothing."""
    if column.imbalance == "none":
        assert column.subset == "authors"
    elif column.dataset not in ARCHIVE_ORDER_KNOWN:
        assert column.subset == "hash"
    elif column.is_drawn:  # a variant, beside the column that it is to be compared with
        assert column.name.removesuffix(f"-{column.subset}") in {c.name for c in paper.columns["paper"]}
