"""The quickstart notebook, and what its outputs are once all is taken away that *must* differ."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nbformat
from PIL import Image

from ._debugging import Findings

Notebook = nbformat.NotebookNode

PATH: Final = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"

SAW: Final = "sandbox-saw"
"""The tag of the cells that print what the sandbox looks like from inside: they differ."""
DEBUGGED: Final = "debugged"
"""The tag of the cell that the tests debug,"""
STOP_AT: Final = "return total / count"
"""and the line of it that gets the breakpoint."""

#: Matplotlib says so after five seconds, on whichever machine is that slow: it depends on time.
FONT_CACHE = "Matplotlib is building the font cache; this may take a moment.\n"

#: Something that each cell must show, so that two kernels which both fail are not "the same".
MUST_SHOW: Final = {
    "arrays": "three walks end at",
    "table": "coffee",
    "figure": "image/png",
    "widget": "application/vnd.jupyter.widget-view+json",
    "command": "hello from 42 in a shell",
    "bash": "three\\ntwo\\none",
    "processes": "[0, 1, 4, 9, 16, 25, 36, 49]",
    "threads": "'WARP', 'WEFT', 'THREAD'",
    "coroutines": "tea after 4 minutes",
    "database": "('Wed',)",
    "debug": "3.0",
}


def read(path: Path) -> Notebook:
    notebook: Notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def write(path: Path, *sources: str) -> None:
    """Write a notebook of code cells only."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]  # type: ignore[no-untyped-call]
    metadata = {"language_info": {"name": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)  # type: ignore[no-untyped-call]
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]


def load() -> Notebook:
    return read(PATH)


def code_cells(notebook: Notebook) -> list[Notebook]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def has_tag(cell: Notebook, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


@dataclass(frozen=True)
class Run:
    """One execution of the quickstart notebook by some front end."""

    notebook: Notebook
    debugged: Findings
    left_behind: tuple[str, ...]
    """The names in the workspace afterwards."""

    def comparable(self) -> dict[str, Any]:
        """By cell id, what two kernels must agree on; for the cells that are not tagged."""
        cells = [cell for cell in code_cells(self.notebook) if not has_tag(cell, SAW)]
        return _name_ids(
            {
                cell.id: {
                    "execution_count": cell.execution_count,
                    "outputs": [_plain(output) for output in merge_streams(cell.outputs)],
                }
                for cell in cells
            }
            | {"metadata": self._metadata()}
        )

    def _metadata(self) -> dict[str, Any]:
        keys = ("language_info", "widgets")
        return {key: self.notebook.metadata[key] for key in keys if key in self.notebook.metadata}

    def saw(self) -> str:
        """All text of the tagged cells."""
        cells = [cell for cell in code_cells(self.notebook) if has_tag(cell, SAW)]
        return "".join(output.text for cell in cells for output in cell.outputs)


def merge_streams(outputs: Iterable[Notebook]) -> list[Notebook]:
    """Join neighbouring pieces of a stream: where the kernel cuts it is a matter of time."""
    merged: list[Notebook] = []
    for output in outputs:
        is_stream = output.output_type == "stream"
        if is_stream and output.text == FONT_CACHE:
            continue
        if is_stream and merged and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(copy.deepcopy(output))
    return merged


def _plain(output: Notebook) -> dict[str, Any]:
    """The output as plain JSON, a picture as the digest of its pixels."""
    plain: dict[str, Any] = json.loads(json.dumps(output))
    data = plain.get("data", {})
    if "image/png" in data:
        data["image/png"] = _pixels(data["image/png"])
    return plain


def _pixels(png: str) -> dict[str, Any]:
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        assert image.format == "PNG"
        colours = len(image.convert("RGB").getcolors(maxcolors=image.width * image.height) or ())
        return {
            "size": list(image.size),
            "mode": image.mode,
            "colours": colours,
            "sha256": hashlib.sha256(image.tobytes()).hexdigest(),
        }


def _name_ids(data: dict[str, Any]) -> dict[str, Any]:
    """The random id of a widget becomes the name of its model; the notebook has one of each.

    Front ends that do not keep the widgets' state show only one id, that of the view.
    """
    widgets = data["metadata"].get("widgets", {})
    states = [state for bundle in widgets.values() for state in bundle["state"].items()]
    names = {comm_id: state["model_name"] for comm_id, state in states}
    assert len(set(names.values())) == len(names), "two widgets of one kind: name them otherwise"

    def name(match: re.Match[str]) -> str:
        return str(names.get(match[0], "view"))

    named: dict[str, Any] = json.loads(
        re.sub(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])", name, json.dumps(data))
    )
    return named


def check_content(run: Run, greeted: str) -> None:
    """The cells did what they are there for; ``greeted`` is who the notebook said hello to."""
    cells = run.comparable()
    must_show = MUST_SHOW | {"question": f"Hello, {greeted}!"}
    assert set(cells) == set(must_show) | {"metadata"}, "a cell has no line in MUST_SHOW"
    for cell_id, text in must_show.items():
        assert text in json.dumps(cells[cell_id]["outputs"], ensure_ascii=False), cell_id
    assert "3 → 7 cups\n" in [output.get("text") for output in cells["widget"]["outputs"]]
    picture = cells["figure"]["outputs"][0]["data"]["image/png"]
    assert picture["colours"] > 4, "the figure is blank"
    assert run.debugged.variables == {"values": "[1, 2, 3, 6]", "total": "12", "count": "4"}
    assert (run.debugged.reason, run.debugged.frame) == ("breakpoint", "average")
    assert (run.debugged.evaluated, run.debugged.result) == ("3.0", "3.0")
    assert run.left_behind == ()


def check_saw(saw: str) -> None:
    """The tagged cells describe a sandbox, not the host."""
    seen = {key.strip(): value.strip() for key, _, value in _lines(saw)}
    assert seen["my pid"] == "2"
    assert re.fullmatch(r"\[1, 2(, \d+)*\]", seen["pids in /proc"])
    assert seen["host name"] == "sandbox"
    assert int(seen["CapEff"], 16) == 0
    assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
    assert "'lo'" in seen["interfaces"]
    assert seen["interfaces"].count("'") == 4
    assert seen["the world"] in ("OSError (ENETUNREACH)", "PermissionError (EPERM)")
    for key in ("list ~/.ssh", "list /root", "read /etc/shadow", "write to /etc", "write to /usr"):
        assert "Error (" in seen[key], key
    assert (seen["write to /tmp"], seen["write to here"]) == ("written", "written")


def _lines(text: str) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in text.splitlines()]
