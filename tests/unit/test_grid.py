"""What a grid is made of, what it refuses, and how its table comes about; no run is learned here."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cutline import config as configuration
from cutline.cli import grid_table, trials
from cutline.cli.grid_table import Row
from cutline.config import Config
from cutline.engine import grid, machine
from cutline.engine.grid import Cell, Grid
from cutline.engine.results import Figure, Result, figure, result
from cutline.errors import ConfigError
from cutline.presets import PRESETS


def changed(**tables: Any) -> Config:
    return configuration.from_dict(tables)


def planned(out: Path, *asked: str, base: Config | None = None, seeds: tuple[int, ...] = (0,)) -> Grid:
    base = base or Config()
    cells, heading = grid.varied(base, asked)
    return Grid(base, cells, seeds, out, heading)


# Which cells --------------------------------------------------------------------------------------------------------


def test_all_combinations_in_the_order_given() -> None:
    cells, heading = grid.varied(Config(), ["decoder.kind=lstm,gru", "training.label_smoothing=0, 0.1"])
    assert heading == "kind, label_smoothing"
    assert [cell.name for cell in cells] == ["lstm, 0", "lstm, 0.1", "gru, 0", "gru, 0.1"]
    assert cells[3].changes == {"decoder": {"kind": "gru"}, "training": {"label_smoothing": 0.1}}
    assert cells[0].slug == "lstm-0"


def test_values_are_those_of_toml_and_bare_words_are_text() -> None:
    cells, _ = grid.varied(Config(), ['data.languages=["en"],["en", "de"]'])
    assert [cell.changes["data"]["languages"] for cell in cells] == [["en"], ["en", "de"]]
    cells, _ = grid.varied(Config(), ['words.embeddings="",some where/glove.txt', "decoder.tie=true,false"])
    assert [cell.name for cell in cells] == ['"", true', '"", false', "glove.txt, true", "glove.txt, false"]
    assert cells[3].changes == {"words": {"embeddings": "some where/glove.txt"}, "decoder": {"tie": False}}
    base = changed(task="both")
    _, heading = grid.varied(base, ["decoder.dropout=0,0.5", "classes.dropout=0,0.5"])
    assert heading == "decoder.dropout, classes.dropout"


def test_what_means_the_same_is_one_row() -> None:
    """A Transformer has one attention; heads are a Transformer's alone."""
    asked = ["decoder.kind=lstm,transformer", "decoder.attention=none,luong", "decoder.heads=2,4"]
    cells, _ = grid.varied(Config(), asked)
    assert [cell.name for cell in cells] == [
        "lstm, none, –",
        "lstm, luong, –",
        "transformer, –, 2",
        "transformer, –, 4",
    ]
    assert [cell.slug for cell in cells] == ["lstm-none", "lstm-luong", "transformer-2", "transformer-4"]


@pytest.mark.parametrize(
    ("base", "asked", "says"),
    [
        ({}, ["decoder.knd=lstm,gru"], "unknown setting 'decoder.knd' (did you mean 'kind'?)"),
        ({}, ["decoder.kind=lstm,gruu"], "did you mean 'gru'?"),
        ({}, ["training.batch=32,many"], "'training.batch' is 'many'"),
        ({}, ["training.batch=32,32"], "has a value twice"),
        ({}, ["training.batch=16,32", "training.batch=64"], "--vary names 'training.batch' twice"),
        ({}, ["decoder=lstm", "decoder.kind=gru,lstm"], "--vary names 'decoder.kind' and also 'decoder'"),
        ({}, ["decoder.kind"], "expected: SETTING=V1,V2"),
        ({}, ["decoder.kind="], "expected: SETTING=V1,V2"),
        ({}, ["decoder.kind=lstm,,gru"], "expected: SETTING=V1,V2"),
        ({}, ["seed=0,1"], "--vary changes 'seed'"),
        ({}, ["classes.head=linear,mlp"], "'classes.head' makes no difference here"),
        ({"task": "classes"}, ["search.beam=1,3"], "'search.beam' makes no difference here"),
        (
            {"stages": [{"training": {"rate": 1e-3}}]},
            ["training.rate=1e-3,1e-4"],
            "all its values mean the same (what a stage sets replaces what the base does)",
        ),
        ({}, ["words.embeddings=a/glove.txt,b/glove.txt"], "has a value twice"),
        ({}, ["encoder.name=a/b,a_b", "encoder.weights=x:y,x y"], "makes no name for a folder"),
    ],
)
def test_mistakes_in_what_to_vary_are_named(base: dict[str, Any], asked: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid.varied(changed(**base), asked)
    assert says in str(caught.value)


def rows(tmp_path: Path, text: str, base: Config | None = None) -> tuple[Cell, ...]:
    file = tmp_path / "rows.toml"
    file.write_text(text)
    return grid.rows(base or Config(), file)


def test_rows_come_after_the_base(tmp_path: Path) -> None:
    cells = rows(
        tmp_path,
        '["no smoothing"]\ntraining.label_smoothing = 0.0\n["GRU, wide"]\n["GRU, wide".decoder]\nkind = "gru"'
        "\nhidden = 9\n[once]\nstages = []\n",
        PRESETS["flickr8k"](),
    )
    assert [cell.name for cell in cells] == ["base", "no smoothing", "GRU, wide", "once"]
    assert cells[2].changes == {"decoder": {"kind": "gru", "hidden": 9}}
    made = Grid(PRESETS["flickr8k"](), cells, (0, 4), tmp_path, "row").trials
    assert [trial.name for trial in made][-2:] == ["once-seed0", "once-seed4"]
    assert made[-1].config.stages == ()
    assert (made[-1].config.seed, made[-1].config.output) == (4, str(tmp_path / "once-seed4"))
    assert made[0].config.stages == PRESETS["flickr8k"]().stages


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a]\ndecoder.hiden = 3", "row 'a': unknown setting 'decoder.hiden' (did you mean 'hidden'?)"),
        ("[a]\ndecoder.hidden = 'x'", "row 'a': 'decoder.hidden' is 'x'"),
        ("hidden = 3", "'hidden' is no row"),
        ("", "has no rows"),
        ("[a]\nseed = 3", "row 'a' changes 'seed'"),
        ("[a]\ndecoder.hidden = 512", "row 'a' means the same as row 'base'"),
        ("[a]\ndecoder.hidden = 3\n[b]\ndecoder.hidden = 3", "row 'b' means the same as row 'a'"),
        ("[a]\ndecoder.hidden = 3\n[A]\ndecoder.hidden = 4", "'A' as well as 'a' makes no name for a folder"),
        ('["…"]\ndecoder.hidden = 3', "'…' makes no name for a folder"),
        ("[a\n", "is not TOML"),
    ],
)
def test_mistakes_in_rows_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rows(tmp_path, text)
    assert says in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        grid.rows(Config(), tmp_path / "none.toml")


def test_the_rows_behind_the_documented_tables_are_rows() -> None:
    folder = Path(__file__).parents[2] / "docs" / "experiments"
    base = configuration.load(folder / "decoders.toml", PRESETS["frozen"]())
    assert (base.data.languages, base.training.epochs, base.search.beam) == (("en",), 3, 3)
    written = (folder.parent / "quality.md").read_text()
    for cell in grid.rows(base, folder / "ablation.toml"):
        assert f"| {cell.name} |" in written


def test_a_file_of_rows_may_begin_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "rows.toml").write_text("[wide]\ndecoder.hidden = 9\n", encoding="utf-8-sig")
    assert [cell.name for cell in grid.rows(Config(), tmp_path / "rows.toml")] == ["base", "wide"]


def test_seeds() -> None:
    assert grid.seeds("0, 2,1") == (0, 2, 1)
    for text in ("", "0,0", "1,x", "-1", "1,"):
        with pytest.raises(ConfigError, match="--seeds"):
            grid.seeds(text)


# Whose run it is ----------------------------------------------------------------------------------------------------


def test_rows_that_differ_in_their_search_alone_share_a_run(tmp_path: Path) -> None:
    made = planned(tmp_path, "search.beam=1,3", "decoder.kind=lstm,gru").trials
    assert [trial.cell.name for trial in made] == ["1, lstm", "1, gru", "3, lstm", "3, gru"]
    assert [trial.learner.cell.name for trial in made] == ["1, lstm", "1, gru", "1, lstm", "1, gru"]
    begun = made[2].place / "20260101-000000-x"  # the one that has begun goes before the first
    begun.mkdir(parents=True)
    (begun / "run.json").write_text("{}")
    assert made[0].learner == made[0]
    (begun / "config.toml").write_text("")
    assert made[0].learner == made[2]
    assert made[1].learner == made[1]


def test_a_search_that_is_learned_from_has_a_run_of_its_own(tmp_path: Path) -> None:
    base = changed(training={"objective": "self_critical", "captions": 2})
    assert all(trial.learner == trial for trial in planned(tmp_path, "search.beam=1,3", base=base).trials)


def test_a_stop_is_no_failure_and_the_table_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter([(2, "it broke"), (143, "it broke before")])
    monkeypatch.setattr(trials, "_learn", lambda trial, quiet: next(codes))
    failed: dict[str, str] = {}
    written: list[dict[str, str]] = []
    made = planned(tmp_path, "decoder.kind=lstm,gru,transformer")
    assert trials.do_all(made, failed, lambda: written.append(dict(failed)), quiet=True) == 143
    assert written == [{}, {"lstm-seed0": "it broke"}, {"lstm-seed0": "it broke"}]


def test_what_shares_a_run_that_failed_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[str] = []

    def learn(trial: grid.Trial, quiet: bool) -> tuple[int, str]:
        learned.append(trial.name)
        return 1, "it broke"

    monkeypatch.setattr(trials, "_learn", learn)
    failed: dict[str, str] = {}
    assert trials.do_all(planned(tmp_path, "search.beam=1,3"), failed, lambda: None, quiet=True) == 1
    assert learned == ["1-seed0"]
    assert failed == {"1-seed0": "it broke", "3-seed0": "it broke"}


def test_a_search_that_needs_too_much_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(trial: grid.Trial, quiet: bool) -> dict[str, Any]:
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(trials, "_learn", lambda trial, quiet: (0, ""))
    monkeypatch.setattr(trials, "_search", search)
    made, failed = planned(tmp_path, "search.beam=1,3"), dict[str, str]()
    begun = made.trials[0].place / "20260101-000000-x"
    begun.mkdir(parents=True)
    for name in ("run.json", "config.toml"):
        (begun / name).write_text("{}" * (name == "run.json"))
    assert trials.do_all(made, failed, lambda: None, quiet=True) == 1
    assert failed == {"3-seed0": "RuntimeError: CUDA out of memory."}


# The folder ---------------------------------------------------------------------------------------------------------


def test_a_grid_goes_on_if_it_is_still_the_same(tmp_path: Path) -> None:
    first = planned(tmp_path, "decoder.kind=lstm,gru")
    grid.open_or_begin(first)
    grid.open_or_begin(first)
    looked_after = replace(first, base=changed(name="other", seed=3, output="there", health={"restarts": 9}))
    grid.open_or_begin(looked_after)
    grid.open_or_begin(planned(tmp_path, "decoder.kind=gru,transformer", seeds=(5,)))
    with pytest.raises(ConfigError, match=r"another base: training.batch was 64, now 8; training.epochs was 12, now 3"):
        grid.open_or_begin(replace(first, base=changed(training={"batch": 8, "epochs": 3})))
    other = replace(first, cells=(replace(first.cells[0], changes={"decoder": {"kind": "gru"}}),))
    with pytest.raises(ConfigError, match=r"another row 'lstm': decoder.kind was 'lstm', now 'gru'"):
        grid.open_or_begin(other)
    known = json.loads((tmp_path / "grid.json").read_text())
    assert list(known["cells"]) == ["lstm", "gru", "transformer"]


def test_settings_that_came_later_had_their_usual_value(tmp_path: Path) -> None:
    first = planned(tmp_path, "decoder.kind=lstm,gru")
    grid.open_or_begin(first)
    file = tmp_path / "grid.json"
    told = json.loads(file.read_text())
    del told["base"]["training"]["accumulate"], told["base"]["classes"]
    file.write_text(json.dumps(told))
    grid.open_or_begin(first)
    file.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"training.accumulate was 1, now 2"):
        grid.open_or_begin(replace(first, base=changed(training={"accumulate": 2})))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"base": 3, "cells": {}}', '{"base": {}, "cells": {"lstm": 1}}'])
def test_a_damaged_note_is_named_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(ConfigError, match=r"grid.json is damaged"):
        grid.open_or_begin(planned(tmp_path, "decoder.kind=lstm,gru"))
    assert (tmp_path / "grid.json").read_text() == text


# What a run has come to ---------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two stages of one epoch and of three, the second killed in its middle and taken up again an hour later."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "run.json").write_text('{"id": "x"}')
    (path / "config.toml").write_text("")
    entries = [
        (0, "started", {}), (90, "training", {"stage": 1, "step": 0, "learning": 5, "parameters": 9}),
        (95, "health", {"process_memory": 700}), (100, "saved", {}),
        (150, "training", {"stage": 2, "step": 10, "learning": 7, "parameters": 9}), (170, "saved", {}),
        (175, "failed", {}), (175, "restarting", {}), (3600, "started", {}),
        (3660, "training", {"stage": 2, "step": 20, "learning": 7, "parameters": 9}), (3670, "saved", {}),
        (3700, "finished", {"peak_memory": 900}),
    ]  # fmt: skip
    lines = [json.dumps({"time": 1000.0 + time, "kind": kind, **values}) for time, kind, values in entries]
    (path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    validations = [(10, 1, True, 20.0), (20, 1, True, 30.0), (30, 2, True, 40.0), (40, 3, False, 35.0)]
    events = [
        {"kind": "validation", "step": step, "epoch": epoch, "best": best, "en_cider": score, "en_count": 50}
        for step, epoch, best, score in validations
    ]
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_what_a_run_has_come_to(run: Path) -> None:
    found = result(run)
    assert found.scores == {"en_cider": 40.0}
    assert found.pictures == 50
    assert (found.learning, found.parameters, found.memory) == (7, 9, 900)
    assert found.seconds == pytest.approx(10 + 20 + 10)  # neither preparation nor pauses nor what follows
    assert (found.best_epoch, found.epochs) == (3, 4)  # an epoch of the first stage, two of the second
    assert found.epoch_seconds == pytest.approx(10)


def test_of_a_run_that_has_only_begun_little_is_known(run: Path) -> None:
    (run / "events.jsonl").write_text("")
    (run / "journal.jsonl").write_text('{"time": 5.0, "kind": "started"}\n')
    assert result(run) == Result()


def test_the_peak_of_a_process_is_its_own() -> None:
    """And not that of who has started it, which is a grid that may have held a model."""
    held = np.ones(400_000_000, np.uint8)
    told = subprocess.run(
        [sys.executable, "-c", "from cutline.engine.machine import peak_memory; print(peak_memory())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    own = machine.peak_memory()
    assert own is not None
    assert own > held.nbytes > int(told.stdout)
    del held
    machine.forget_peak_memory()
    assert (machine.peak_memory() or 0) < own - 300_000_000
    assert machine.peak_memory(Path("nowhere")) is None


def test_a_figure_is_a_mean_and_a_standard_deviation() -> None:
    assert figure([None]) is None
    assert figure([3.0, None]) == Figure(3.0, None)
    found = figure([1.0, 3.0])
    assert found is not None
    assert (found.mean, found.spread) == (2.0, pytest.approx(2**0.5))


# The table ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> tuple[Grid, list[Row]]:
    made = planned(tmp_path, "decoder.kind=lstm,gru", "decoder.hidden=8,16", seeds=(0, 1))

    def of(score: float, seconds: float, memory: int) -> Result:
        return Result(
            {"en_cider": score, "nll": score / 10}, 50, "x", 10**6, 2 * 10**6, seconds, seconds / 4, memory, 3, 4
        )

    done: list[tuple[dict[int, Result], dict[int, str]]] = [
        ({0: of(40, 60, 10**9), 1: of(42, 80, 2 * 10**9)}, {}),
        ({0: of(50, 200, 10**9), 1: replace(of(54, 200, 10**9), best_epoch=1)}, {}),
        ({0: of(30, 50, 10**9)}, {1: "it broke"}),
        ({}, {0: "", 1: ""}),
    ]
    cells = zip(made.cells, done, strict=True)
    return made, [Row(cell, results, missing, cell.name) for cell, (results, missing) in cells]


def test_markdown_has_means_spreads_differences_and_the_best(table: tuple[Grid, list[Row]]) -> None:
    made, told = table
    lines = grid_table.markdown(made, told, grid_table.columns(told, "", compare=True)).splitlines()
    assert lines[0] == ("| kind, hidden | CIDEr-D en | learned | parameters | s/epoch | time | memory | best epoch |")
    assert lines[2] == "| lstm, 8 | 41.0 ± 1.4 | 1.00 M | 2.00 M | 17.5 | 1:10 | 2.0 GB | 3 of 4 |"
    assert lines[3] == "| lstm, 16 | **52.0 ± 2.8** (+11.0) | 1.00 M | 2.00 M | 50.0 | 3:20 | **1.0 GB** | 1–3 of 4 |"
    assert lines[4].startswith("| gru, 8 (1 of 2) | 30.0 (-11.0) | 1.00 M | 2.00 M | **12.5** | **0:50** |")
    assert lines[5] == "| gru, 16 (0 of 2) | – | – | – | – | – | – | – |"
    assert lines[7:] == [
        "- Scores are of each run's best validation, 0 to 100: the mean over 2 seeds ± their standard deviation.",
        "- gru, 8, seed 1 failed: it broke",
        "- 2 runs not finished yet.",
    ]


def test_a_row_is_a_line_whatever_it_is_called(table: tuple[Grid, list[Row]]) -> None:
    made, (first, *others) = table
    name = "a\nb | <b>c"
    odd = replace(first, cell=replace(first.cell, name=name), missing={2: "no\npictures"}, learner=name)
    text = grid_table.markdown(made, [odd, *others], grid_table.columns([odd, *others], "", compare=True))
    assert r"| a b \| &lt;b>c (2 of 3) | " in text
    assert "- a b | &lt;b>c, seed 2 failed: no pictures\n" in text
    assert len(text.splitlines()) == 2 + 4 + 1 + 4


def test_scores_may_be_chosen_and_of_some_less_is_better(table: tuple[Grid, list[Row]]) -> None:
    _, told = table
    scores = grid_table.columns(told, "nll", compare=False)[0]
    assert [column.heading for column in scores] == ["nll"]
    assert scores[0].best == [False, False, True, False]
    assert len(grid_table.columns(told, "all", compare=False)[0]) == 2
    absent = grid_table.columns(told, "top5", compare=False)[0]
    assert set(absent[0].texts) == {"–"}


@pytest.mark.parametrize(
    ("asked", "task"), [("bleu", "captions"), ("top5", "captions"), ("accuracy,en_cider", "classes"), ("nl", "both")]
)
def test_a_score_that_no_run_can_have_is_refused_before_anything_is_learned(asked: str, task: str) -> None:
    with pytest.raises(ConfigError, match=r"no run has the score '(bleu|top5|en_cider|nl)'"):
        grid_table.check(asked, task)


@pytest.mark.parametrize(
    ("asked", "task"),
    [("", "captions"), ("all", "classes"), ("de_bleu_4, en_novel", "captions"), ("nll,en_cider", "both")],
)
def test_scores_that_a_run_may_have_are_not(asked: str, task: str) -> None:
    grid_table.check(asked, task)


def test_what_is_written_alike_is_best_alike(table: tuple[Grid, list[Row]]) -> None:
    _, (first, second, *_) = table
    near = replace(second, results={0: replace(first.results[0], scores={"en_cider": 41.04}, memory=2 * 10**9)})
    scores, costs = grid_table.columns([first, near, replace(first, results=dict(second.results))], "en_cider", False)
    assert scores[0].texts == ["41.0 ± 1.4", "41.0", "52.0 ± 2.8"]
    assert scores[0].best == [False, False, True]
    scores, costs = grid_table.columns([first, near], "en_cider", compare=False)
    assert scores[0].best == [False, False]
    assert {column.heading for column in costs if any(column.best)} == {"s/epoch", "time"}


def test_programs_get_all_that_is_known(table: tuple[Grid, list[Row]]) -> None:
    made, told = table
    found = json.loads(json.dumps(grid_table.to_dict(made, told)))
    assert found["rows"][1]["changes"] == {"decoder": {"kind": "lstm", "hidden": 16}}
    assert found["rows"][1]["scores"]["en_cider"] == {"mean": 52.0, "spread": pytest.approx(8**0.5)}
    assert found["rows"][1]["difference"]["en_cider"] == 11.0
    assert found["rows"][1]["seeds"]["1"]["best_epoch"] == 1
    assert found["rows"][2]["missing"] == {"1": "it broke"}


def test_a_narrow_terminal_gets_several_tables(table: tuple[Grid, list[Row]], monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = table
    for width, tables in ((200, 1), (80, 2), (40, 4)):
        out = io.StringIO()
        monkeypatch.setattr(grid_table, "new_console", lambda w=width, o=out: Console(file=o, width=w))
        grid_table.show(made, told, grid_table.columns(told, "", compare=True))
        lines = out.getvalue().splitlines()
        assert sum(line.startswith("kind, hidden") for line in lines) == tables
        assert max(map(len, lines)) <= width
        assert "52.0 ± 2.8" in out.getvalue()


def test_other_pictures_are_told(table: tuple[Grid, list[Row]]) -> None:
    made, told = table
    other = replace(told[0], results={0: replace(told[0].results[0], pictures=10)})
    assert "They are not of the same pictures" in grid_table.notes(made, [other, *told[1:]])[1]
    later = replace(told[0], results={0: replace(told[0].results[0], data="y")})
    assert "The data have changed" in grid_table.notes(made, [later, *told[1:]])[1]
    asked = replace(later, cell=replace(later.cell, changes={"data": {"limit": 5}}))
    assert "The data have changed" not in str(grid_table.notes(made, [asked, *told[1:]]))
    shared = replace(told[1], learner="lstm, 8")
    assert "lstm, 16: the weights of lstm, 8; it differs in its search alone." in grid_table.notes(made, [shared])
