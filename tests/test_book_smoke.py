"""Every chapter runs at another scale and with other seeds, in an empty folder, through papermill."""

import pytest

from tools.book import execute
from tools.notebooks import chapters, read


@pytest.mark.parametrize("chapter", chapters(), ids=lambda path: path.stem)
def test_smoke(chapter, tmp_path, monkeypatch):
    monkeypatch.delenv("FUSEMIX_LITE_REAL", raising=False)  # as for a reader who has no real latents
    target = tmp_path / chapter.name
    execute(chapter, target, {"profile": "smoke", "seeds": 3})
    code = [cell for cell in read(target).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert [path.name for path in tmp_path.iterdir()] == [chapter.name], "the chapter left files behind"
