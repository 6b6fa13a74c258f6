"""Errors say what happened, what was expected, and the way out."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from cutline.cli import doctor
from cutline.errors import WORKSHOP, CutlineError, choose, nearest, require, require_workshop


def test_an_error_is_told_on_a_line_each() -> None:
    error = CutlineError("it broke", expected="a whole one", fix="mend it")
    assert str(error).splitlines() == ["it broke", "expected: a whole one", "to fix:   mend it"]


def test_nearest() -> None:
    assert nearest("becm", ["beam", "greedy"]) == " (did you mean 'beam'?)"
    assert nearest("xyz", ["beam", "greedy"]) == ""


def test_choose_lists_what_there_is() -> None:
    assert choose("lstm", {"lstm": 1, "gru": 2}, "decoder") == "lstm"
    with pytest.raises(CutlineError) as caught:
        choose("gro", {"lstm": 1, "gru": 2}, "decoder")
    assert str(caught.value) == "unknown decoder 'gro' (did you mean 'gru'?)\nexpected: gru, lstm"


def test_an_absent_library_names_its_extra() -> None:
    assert require("json", "train", "reading") is sys.modules["json"]
    with pytest.raises(CutlineError, match="pip install 'cutline\\[train\\]'"):
        require("no_such_library.part", "train", "training")


def test_a_broken_library_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_library.py").write_text("import a_missing_part_of_it\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_missing_part_of_it"):
        require("half_a_library", "train", "training")


def test_part_of_the_workshop_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for those who have torch already, and have then installed the core alone."""
    require_workshop("training")
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(CutlineError, match=r"training needs 'psutil'(.|\n)*pip install 'cutline\[train\]'"):
        require_workshop("training")


def test_every_library_of_an_extra_is_known() -> None:
    """To the doctor, by the names that pip knows, and to whoever needs the workshop, by those that Python does."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    wanted = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, packages in doctor.EXTRAS.items():
        assert list(packages) == [re.split("[>=]", line)[0] for line in wanted[extra]]
    imported = {"scikit-learn": "sklearn"}
    assert tuple(imported.get(name, name.replace("-", "_")) for name in doctor.EXTRAS["train"]) == WORKSHOP
