"""Configurations: read, written, refused by name."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from cutline import config
from cutline.cli.explained import explained
from cutline.config import Config
from cutline.errors import ConfigError
from cutline.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_being_written_and_read(name: str, tmp_path: Path) -> None:
    preset = PRESETS[name]()
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml(preset), encoding="utf-8")
    assert config.load(file) == preset


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('seed = 7\n[decoder]\nkind = "gru"\n[data]\nlanguages = ["de", "fr"]\n[training]\nrate = 1\n')
    read = config.load(file)
    assert (read.seed, read.decoder.kind, read.data.languages) == (7, "gru", ("de", "fr"))
    assert read.training.rate == 1.0
    assert isinstance(read.training.rate, float)
    assert read.encoder == Config().encoder


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sead = 1", "unknown setting 'sead' (did you mean 'seed'?)"),
        ("[training]\nepoch = 3", "unknown setting 'training.epoch' (did you mean 'epochs'?)"),
        ("[training]\nepochs = 'three'", "'training.epochs' is 'three'"),
        ("[training]\nepochs = true", "'training.epochs' is True"),
        ("[training]\nepochs = 2.5", "'training.epochs' is 2.5"),
        ("[decoder]\nkind = 'lsmt'", "'decoder.kind' is 'lsmt' (did you mean 'lstm'?)"),
        ("decoder = 'lstm'", "'decoder' is a table of settings"),
        ("[data]\nlanguages = 'de'", "'data.languages' is 'de'"),
        ("[data]\nlanguages = [1]", "'data.languages' is 1"),
        (f"threads = {10**12}", f"'threads' is {10**12}\nexpected: 0 to 4096"),
        ("[training]\nbatch = 0", "'training.batch' is 0\nexpected: at least 1"),
        ("[training]\nrate = nan", "'training.rate' is nan"),
        ("[decoder]\ndropout = 1.5", "'decoder.dropout' is 1.5\nexpected: 0 to 1"),
        ("seed = = 1", "is not TOML"),
        (f"seed = {'9' * 5000}", "is not TOML"),
        ("seed = -1", "'seed' is -1\nexpected: 0 to"),
        (f"seed = {2**70}", f"'seed' is {2**70}"),
        (f"[training]\nbatch = {10**30}", f"'training.batch' is {10**30}\nexpected: a finite number"),
        (f"[training]\nrate = {10**400}", "'training.rate' is 1000"),
        ("[training]\nrate = inf", "'training.rate' is inf\nexpected: a finite number"),
        ("[health]\nhang_minutes = inf", "'health.hang_minutes' is inf"),
        ("stages = [1]", "'stages' is 1\nexpected: a table of settings"),
        ("stages = [{training = 3}]", "stage 1: 'training' is a table of settings"),
        (
            "[[stages]]\ntraining = {metric = 'auto'}\n[[stages]]\ntraining = {metric = 'bleu4'}",
            "stage 2 has the metric 'bleu4', the run 'cider'",
        ),
        (
            "[[stages]]\n[[stages]]\ntraining = {validate_limit = 50}",
            "stage 2 validates on another number of pictures than the run",
        ),
        ("[[stages]]\n[[stages]]\nencoder = {name = 'vgg16'}", "stage 2 has another encoder, or other weights"),
        ("[[stages]]\nencoder = {weights = 'other.pth'}", "stage 1 has another encoder, or other weights"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_name_that_no_file_of_a_run_could_hold_is_refused() -> None:
    """As a shell passes on that of a folder whose letters are of an older encoding."""
    with pytest.raises(ConfigError, match=r"'data.path' is 'caf\\udce9'"):
        config.from_dict({"data": {"path": "caf\udce9"}})


def test_captions_that_are_compared_are_several() -> None:
    with pytest.raises(ConfigError, match=r"with training\.captions = 1 .* nothing is learned"):
        config.from_dict({"training": {"objective": "self_critical"}})
    ends = {"training": {"objective": "self_critical"}}
    with pytest.raises(ConfigError, match=r"stage 2: with training\.captions = 1"):
        config.from_dict({"stages": [{}, ends]})
    assert config.from_dict({"training": {"captions": 2}, "stages": [{}, ends]}).stage(1).training.captions == 2
    several = {"training": {"captions": 2}}
    assert config.from_dict({**ends, "stages": [several, several]}).stage(1).training.objective == "self_critical"
    assert config.from_dict({**ends, "task": "classes"}).task == "classes"


def test_a_file_may_begin_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("seed = 7\n", encoding="utf-8-sig")
    assert config.load(tmp_path / "config.toml").seed == 7


def test_a_folder_is_no_config_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.load(tmp_path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config file"):
        config.load(tmp_path / "none.toml")


def test_every_range_is_of_a_setting() -> None:
    for name, (low, high) in config._RANGES.items():
        owner: object = Config()
        *sections, key = name.split(".")
        for section in sections:
            owner = getattr(owner, section)
        assert low <= getattr(owner, key) <= high, name


def test_a_printed_config_says_what_every_setting_means_and_is_read_back() -> None:
    text = explained(PRESETS["flickr8k"]())
    lines = text.splitlines()
    assert config.from_dict(tomllib.loads(text)) == PRESETS["flickr8k"]()
    assert lines[lines.index("split_seed = 0") - 1] == "# Seed of that division."
    assert max(len(line) for line in lines if line.startswith("#")) <= 79
    table, settings = "", 0
    for before, line in pairwise(["", *lines]):
        table = line if line.startswith("[") else table
        if re.match(r"\w+ = ", line) and "stages" not in table:  # those only change what stands above them
            assert before.startswith("# "), line
            settings += 1
    assert settings > 100
