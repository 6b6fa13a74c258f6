"""A benchmark of classifiers: who learns what under which limits, what is measured, and how that is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cutline import config as configuration
from cutline.cli import benchmark as verb
from cutline.cli import benchmark_table
from cutline.cli.arguments import parse
from cutline.cli.benchmark_table import Row
from cutline.cli.train import form
from cutline.config import Config
from cutline.engine import benchmark, folder
from cutline.engine.benchmark import Measured
from cutline.engine.grid import Grid
from cutline.errors import ConfigError
from cutline.evaluation.classes import interval, wilson
from cutline.presets import PRESETS

NETWORKS = ("dnn", "cnn:width=32", "resnet18")


def planned(out: Path, *, seeds: tuple[int, ...] = (0,), minutes: float = 3.0) -> Grid:
    given = {"vgg16, fine-tuned": PRESETS["transfer"](), "vgg16, as it is": PRESETS["probe"]()}
    given = {name: replace(config, encoder=replace(config.encoder, weights="w")) for name, config in given.items()}
    return benchmark.plan(PRESETS["scratch"](), given, NETWORKS, minutes, seeds, out)


def config_of(made: Grid, name: str) -> Config:
    return next(trial.config for trial in made.trials if trial.cell.name == name)


def test_all_learn_for_the_same_minutes_and_are_judged_once(tmp_path: Path) -> None:
    made = planned(tmp_path)
    assert [cell.name for cell in made.cells] == [*NETWORKS, "vgg16, fine-tuned", "vgg16, as it is"]
    for trial in made.trials:
        config = trial.config
        parts = [config.stage(number).training for number in range(max(1, len(config.stages)))]
        assert sum(part.minutes for part in parts) == pytest.approx(3.0)
        assert all(part.validate_every >= part.epochs and not part.patience for part in parts)
        assert all(part.validate_limit == 0 for part in parts)  # all pictures are judged
        assert config.task == "classes"


def test_what_learns_from_nothing_does_so_by_the_same_recipe(tmp_path: Path) -> None:
    made = planned(tmp_path)
    scratch = [config_of(made, name) for name in NETWORKS]
    assert {each.encoder.weights for each in scratch} == {"none"}
    alike = {repr(replace(each, encoder=scratch[0].encoder, name="", output="")) for each in scratch}
    assert len(alike) == 1
    assert scratch[0].training.epochs == benchmark.ENDLESS  # the minutes end it
    assert scratch[0].pictures == PRESETS["scratch"]().pictures


def test_given_weights_are_used_as_they_are_and_learn_on(tmp_path: Path) -> None:
    made = planned(tmp_path)
    tuned, frozen = config_of(made, "vgg16, fine-tuned"), config_of(made, "vgg16, as it is")
    assert [tuned.stage(number).training.minutes for number in (0, 1)] == pytest.approx([0.3, 2.7])
    assert tuned.stage(1).encoder.train == "all"
    assert frozen.encoder.train == "nothing"
    assert frozen.training.epochs == PRESETS["probe"]().training.epochs  # more would only learn by heart
    assert frozen.pictures.augment_crop == 1.0
    assert {tuned.encoder.weights, frozen.encoder.weights} == {"w"}


def understood(folder: Path, *arguments: str) -> tuple[Grid, list[verb.Baseline]]:
    """What the command makes of its arguments."""
    made = form("Classify", verb._ABOUT, verb.Switches, without=verb._WITHOUT)
    always = ["--data", "x", "--out", str(folder / "out"), "--networks", "cnn"]
    return verb._planned(parse(made, [*always, *arguments], verb="benchmark classify"))


def test_a_size_that_is_asked_for_counts_for_more_than_that_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text("[pictures]\nsize = 32\n")
    found = [understood(tmp_path, "--config", str(file), *more) for more in ([], ["--size", "48"])]
    assert [networks.base.pictures.size for networks, _ in found] == [32, 48]


def test_what_needs_no_learning_is_judged_by_all_pictures_too(tmp_path: Path) -> None:
    file = tmp_path / "few.toml"
    file.write_text("[training]\nvalidate_limit = 10\n")
    networks, baselines = understood(tmp_path, "--config", str(file))
    assert {networks.base.training.validate_limit, *(b.config.training.validate_limit for b in baselines)} == {0}


def test_several_encoders_bring_their_weights(tmp_path: Path) -> None:
    given = ["--encoder", "vgg16", "resnet50:in_chans=3", "--weights", "one.safetensors", "two.safetensors"]
    made, baselines = understood(tmp_path, *given)
    weights = {trial.cell.name: trial.config.encoder.weights for trial in made.trials}
    assert weights == {
        "cnn": "none",
        "vgg16, fine-tuned": "one.safetensors",
        "vgg16, as it is": "one.safetensors",
        "resnet50, fine-tuned": "two.safetensors",
        "resnet50, as it is": "two.safetensors",
    }
    assert config_of(made, "resnet50, as it is").encoder.name == "resnet50:in_chans=3"
    ways = ("nearest pictures", "logistic regression")
    expected = {f"{name}, {way}": name for name in ("pixels", "vgg16", "resnet50") for way in ways}
    assert {each.name: each.config.encoder.name.partition(":")[0] for each in baselines[2:]} == {
        name: encoder for name, encoder in expected.items() if encoder != "pixels"
    }
    assert {each.name for each in baselines} == set(expected)


def test_the_same_encoder_with_several_weights_is_called_by_them(tmp_path: Path) -> None:
    given = ["--encoder", "vgg16", "vgg16", "--weights"]
    made, _ = understood(tmp_path, *given, "one.safetensors", "two.safetensors")
    assert {"vgg16 (one), as it is", "vgg16 (two), as it is"} < {trial.cell.name for trial in made.trials}
    with pytest.raises(ConfigError, match="two weights are called"):
        understood(tmp_path, *given, "here/one.safetensors", "there/one.safetensors")


def test_runs_bring_their_own_names_beside_files(tmp_path: Path) -> None:
    teacher = folder.make(replace(PRESETS["scratch"](), output=str(tmp_path / "runs")))
    config = configuration.from_dict({"encoder": {"name": "cnn:width=8"}}, PRESETS["scratch"]())
    (teacher / "config.toml").write_text(configuration.to_toml(config))
    weights = ["one.safetensors", str(teacher)]
    given = verb._weighted(SimpleNamespace(encoder=("vgg16",), weights=weights))
    found = [(each["encoder"], each["weights"]) for each in given]
    assert found == [("vgg16", "one.safetensors"), (None, str(teacher))]
    with pytest.raises(ConfigError, match="2 of --encoder, 1 of --weights that are no runs"):
        verb._weighted(SimpleNamespace(encoder=("vgg16", "cnn"), weights=weights))


def test_rows_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    weights = ["m v1.safetensors", "m-v1.safetensors"]
    with pytest.raises(ConfigError, match="makes no name for a folder"):
        understood(tmp_path, "--encoder", "vgg16", "vgg16", "--weights", *weights)


@pytest.mark.parametrize(
    "given", [("--encoder", "vgg16"), ("--encoder", "vgg16", "resnet50", "--weights", "one.safetensors")]
)
def test_encoders_without_weights_are_refused(tmp_path: Path, given: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="of --encoder") as caught:
        understood(tmp_path, *given)
    assert "--networks" in str(caught.value.fix)


def measured(accuracy: float, **other: object) -> Measured:
    scores = {"accuracy": accuracy, "top5": 99.0, "macro_f1": accuracy - 1}
    figures = Measured("run", "data", scores, 400, 700_000, 12_000_000, 61.0, 0.002, memory=500_000_000)
    return replace(figures, **other)  # type: ignore[arg-type]


def test_what_was_measured_is_kept_until_it_is_of_something_else(tmp_path: Path) -> None:
    place = tmp_path / "cnn-seed0"
    kept = benchmark.keep(place, measured(60.0))
    assert benchmark.load(place, "run") == kept
    assert benchmark.load(place, "another run") is None
    (place / benchmark.MEASURED).write_text('{"of": "run"}')
    assert benchmark.load(place, "run") is None
    (place / benchmark.MEASURED).write_text("{")
    assert benchmark.load(place, "run") is None


def test_the_accuracy_of_one_seed_is_as_sure_as_its_pictures_are_many() -> None:
    row = Row("cnn", {0: measured(60.0)}, {})
    assert row.bounds == wilson(240, 400)
    several = Row("cnn", {seed: measured(value) for seed, value in enumerate((60.0, 62.0, 64.0))}, {})
    found = interval([60.0, 62.0, 64.0])
    assert found.half
    assert several.bounds == pytest.approx((found.mean - found.half, found.mean + found.half))
    far = Row("cnn", {0: measured(0.0), 1: measured(50.0)}, {})
    assert far.bounds == (0.0, 100.0)  # and its bar in the plot does not press all others together


def test_seeds_that_come_to_the_same_are_as_sure_as_their_pictures_are_many(tmp_path: Path) -> None:
    """The nearest pictures are the same with every seed, which says nothing of how sure their accuracy is."""
    alike = Row("near", {0: measured(60.0), 1: measured(60.0)}, {})
    assert alike.bounds == wilson(240, 400)
    benchmark_table.write(planned(tmp_path, seeds=(0, 1)), [alike])
    text = (tmp_path / "table.md").read_text()
    assert "| near | 60.0 (55.1 to 64.7) |" in text.replace("**", "")
    assert "or of those that come to the same" in text


def test_the_table_has_the_best_first_and_says_what_failed(tmp_path: Path) -> None:
    made = planned(tmp_path, seeds=(0, 1))
    rows = [
        Row("dnn", {0: measured(30.0), 1: measured(32.0, parameters=3_845, memory=300_000_000)}, {}),
        Row("cnn", {0: measured(61.0, chosen="5 neighbours")}, {1: ""}),
        Row("vgg16", {}, {0: "no memory", 1: "no memory"}),
    ]
    benchmark_table.write(made, rows)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| cnn (1 of 2)", "| dnn", "| vgg16 (0 of 2)"]
    assert "**61.0 (56.1 to 65.7)** | 99.0" in lines[2].replace("**99.0**", "99.0")
    assert "31.0 ± 12.7" in lines[3]
    for part in ("0.35 M", "12.0 M", "1:01", "2 ms", "500 MB"):
        assert part in lines[3]
    text = "\n".join(lines)
    assert "- vgg16, seed 1 failed: no memory" in text
    assert "- cnn: 5 neighbours." in text
    assert "- 1 cell not finished yet." in text
    assert "cannot be compared" not in text
    told = json.loads((tmp_path / "table.json").read_text())
    assert (told["minutes"], told["rows"][0]["seeds"]["1"]["parameters"]) == (3.0, 3_845)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_other_data_are_told_and_five_best_of_few_classes_are_not_shown(tmp_path: Path) -> None:
    sure = {"accuracy": 50.0, "macro_f1": 50.0}
    rows = [Row("dnn", {0: measured(50.0, scores=sure)}, {}), Row("cnn", {0: measured(0, scores=sure, data="x")}, {})]
    benchmark_table.write(planned(tmp_path), rows)
    text = (tmp_path / "table.md").read_text()
    assert "The data have changed between the rows" in text
    assert "best five" not in text


@pytest.mark.parametrize(
    ("number", "text"), [(3_845, "3,845"), (3.1e5, "0.31 M"), (5.2e6, "5.2 M"), (1.82e9, "1,820 M")]
)
def test_amounts_are_short(number: float, text: str) -> None:
    assert benchmark_table._amount(number) == text


def of_scenes(folder: Path) -> Config:
    scratch = PRESETS["scratch"]()
    data = replace(scratch.data, path=str(folder), val_share=0.2, test_share=0.0)
    small = replace(scratch.encoder, name="cnn:width=8,stages=2")
    return replace(
        scratch, data=data, encoder=small, pictures=replace(scratch.pictures, size=24), threads=1, device="cpu"
    )


@pytest.mark.parametrize("see", [benchmark.see_pixels, benchmark.see_features])
def test_baselines_are_judged_on_what_the_networks_are(
    scenes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, see: Callable[[Config], benchmark.Seen]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = of_scenes(scenes_folder)
    seen = see(replace(config, encoder=replace(config.encoder, train="nothing")))
    for method in benchmark.METHODS:
        found = benchmark.baseline(method, seen, 0, "of")
        assert found.pictures == len(seen.judged.labels)  # type: ignore[arg-type]
        assert 0 <= found.scores["accuracy"] <= 100
        assert found.parameters > seen.parameters
        assert found.multiply_adds > seen.multiply_adds
        assert found.chosen
        assert found == benchmark.keep(tmp_path / "kept", found) == benchmark.load(tmp_path / "kept", "of")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--minutes", "0"], "--minutes 0"),
        (["--encoder", "vgg16"], "1 of --encoder, 0 of --weights"),
        (["--seeds", "0,0"], "--seeds"),
        (["--weights", "nowhere.safetensors", "--seeds", "x"], "--seeds"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(tmp_path: Path, arguments: list[str], match: str) -> None:
    out = tmp_path / "bench"
    with pytest.raises(ConfigError, match=match):
        verb.main(["classify", "--data", str(tmp_path), "--out", str(out), *arguments])
    assert not out.exists()
