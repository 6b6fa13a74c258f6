"""Everything that a run is, as frozen dataclasses: written to the run folder, read back to repeat it."""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cutline.errors import ConfigError, nearest, require


@dataclass(frozen=True)
class DataConfig:
    path: str = "scenes"
    """A folder or file of pictures with captions or labels, or "scenes" for those that Cutline draws itself."""
    format: str = "auto"
    """How to read it: a reader's name (`cutline data formats`), or "auto" to look."""
    images: str = ""
    """The folder from which a table or JSON file names its pictures, where that is not the one it lies in itself."""
    languages: tuple[str, ...] = ()
    """Caption languages to learn; empty means all that are there."""
    divide: Literal["given", "anew"] = "given"
    """Take the splits that the data gives, where it does; or divide all of it anew, by picture, whatever it says."""
    val_share: float = 0.1
    """Share of the pictures held back for validation where the data gives no split."""
    test_share: float = 0.1
    """Share of the pictures held back for testing where the data gives no split."""
    split_seed: int = 0
    """Seed of that division."""
    skip_bad: bool = False
    """Leave out what cannot be read and count it, rather than stop."""
    limit: int = 0
    """Use only this many training pictures (0: all)."""
    scenes: int = 3000
    """How many pictures to draw when `path` is "scenes"."""


@dataclass(frozen=True)
class PicturesConfig:
    size: int = 0
    """Side of the square that the encoder sees, in pixels (0: the encoder's own)."""
    fit: Literal["squash", "crop"] = "squash"
    """Make a picture square by resizing both sides, or by the encoder's own centre crop."""
    grow: float = 1.0
    """Learn from smaller pictures first, which is quicker: from this share of the side, that grows until three quarters
    of a stage are over (1: of full size from the start)."""
    augment_crop: float = 1.0
    """Random crops keep at least this share of the picture (1: no crops)."""
    augment_flip: bool = False
    """Mirror at random, exchanging left and right in the words where the language is known."""
    augment_colour: float = 0.0
    """Strength of random changes of brightness, contrast and colour (0: none)."""
    augment_rand: int = 0
    """RandAugment: two changes drawn from fourteen, this strong of 30 (0: none)."""
    augment_erase: float = 0.0
    """Share of the pictures that lose a rectangle at random."""
    augment_mixup: float = 0.0
    """Blend each picture and its label with another's, by a share drawn from Beta(a, a) of this a (0: never)."""
    augment_cutmix: float = 0.0
    """Likewise, but a rectangle of the one picture in the other; where both are on, each is drawn half of the time."""


@dataclass(frozen=True)
class WordsConfig:
    kind: Literal["word", "bpe"] = "word"
    """Whole words, or byte-pair pieces that can spell any word."""
    min_count: int = 2
    """Words seen less often than this become <unk> (kind "word")."""
    max_size: int = 10_000
    """Largest vocabulary, special tokens included."""
    lowercase: bool = True
    """Fold case before counting."""
    max_length: int = 40
    """Longest caption learned, in tokens; longer ones are cut."""
    embeddings: str = ""
    """Start from these vectors: a GloVe text file, or word2vec text or binary."""


@dataclass(frozen=True)
class EncoderConfig:
    name: str = "small"
    """"small" (our own, learns from scratch), vgg16, resnet50, inception_v3, densenet121, mobilenetv2_100,
    or any other timm model; with arguments for timm, where weights need them: NAME:key=value,key=value."""
    weights: str = "auto"
    """"auto" (none for our own, else the hub), "hub", "none" (random, said out loud), a local file, or a run's folder:
    then the encoder that this run has learned is given to the new one, and its name need not be said."""
    train: str = "auto"
    """Which part learns: "nothing", "all", a stage from which on it learns ("stage3"), or "auto"
    ("all" for "small" and for random weights, else "nothing")."""
    rate: float = 0.0
    """The encoder's own learning rate (0: the run's)."""
    decay: float = 1.0
    """Each stage nearer to the picture learns at this share of the next one's rate (1: all at the same)."""


@dataclass(frozen=True)
class DecoderConfig:
    kind: Literal["lstm", "gru", "transformer"] = "lstm"
    """What writes the words."""
    attention: Literal["none", "bahdanau", "luong"] = "luong"
    """How a recurrent decoder looks at the picture; a Transformer always looks, by dot product."""
    hidden: int = 512
    """Width of the decoder."""
    embed: int = 0
    """Width of the word vectors (0: the same as hidden)."""
    layers: int = 1
    """Layers of the decoder."""
    heads: int = 8
    """Attention heads (Transformer only)."""
    dropout: float = 0.3
    """Share of the values left out at random while learning."""
    tie: bool = True
    """Share the word vectors between input and output."""


@dataclass(frozen=True)
class ClassesConfig:
    head: Literal["linear", "mlp"] = "linear"
    """What makes classes of the encoder's pooled features: one layer, or two with a nonlinearity between."""
    hidden: int = 512
    """Width between the two (head "mlp")."""
    dropout: float = 0.0
    """Share of the features left out at random while learning."""
    balance: Literal["none", "weights", "sampling"] = "none"
    """For classes of unequal size: rare ones count for more, or are shown more often, so that all come to the same."""
    weight: float = 1.0
    """Of the loss of classes beside that of captions (task "both")."""


@dataclass(frozen=True)
class TrainingConfig:
    epochs: int = 12
    """Times that every picture is learned from."""
    minutes: float = 0.0
    """Most minutes of learning, loading included and validation not; the rate comes to its end with them (0: as many as
    the epochs take). How far a run comes then hangs on the machine: no two are the same."""
    objective: Literal["cross_entropy", "self_critical"] = "cross_entropy"
    """Learn to say what the captions say; or write captions freely and learn from those that score above the others."""
    candidates: Literal["beam", "sample"] = "beam"
    """Where the captions come from that are compared (objective "self_critical"): the beams of a search, or the dice,
    which choose among the likeliest words as `search.top_p` and `search.temperature` say."""
    reward_bleu: float = 0.0
    """Weight of BLEU-4 (0 to 1) beside CIDEr-D (0 to 10) in the reward (objective "self_critical")."""
    ground: float = 0.0
    """Weight of the given captions' cross-entropy beside the reward, which keeps languages with few captions from
    drifting (objective "self_critical")."""
    batch: int = 64
    """Pictures in a step."""
    captions: int = 1
    """Captions of a picture learned together in a step, or drawn (objective "self_critical": 2 or more); they share one
    projection of its features."""
    rate: float = 1e-3
    """Learning rate at its highest."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """How a gradient becomes a step; "muon" moves the encoder's convolutions as much in rare directions as in common
    ones, and learns the rest as "adamw" does. From nothing it learns more of the same pictures."""
    weight_decay: float = 1e-4
    """Pull of every weight towards zero."""
    schedule: Literal["cosine", "step", "plateau", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    warmup: int = 100
    """Steps over which the rate rises to its full value."""
    step_epochs: int = 4
    """Epochs between drops of the rate (schedule "step")."""
    drop: float = 0.5
    """Factor of a drop of the rate (schedules "step" and "plateau")."""
    label_smoothing: float = 0.1
    """Share of the wanted word's or class's probability that is spread over all."""
    attention_weight: float = 0.0
    """Weight of the penalty that makes a caption look at every region about equally often over its length."""
    scheduled_sampling: float = 0.0
    """Share of the given words replaced by the model's own guesses by the end of training."""
    clip: float = 5.0
    """Largest gradient norm (0: no clipping)."""
    accumulate: int = 1
    """Batches whose gradients are added up before a step."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Number format of the arithmetic; weights stay fp32, and fp16 scales its loss. "auto": bf16 where it is faster
    than fp32, which is measured when the run begins."""
    checkpointing: bool = False
    """Recompute instead of store: less memory, more time."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is scored and exported (0: none)."""
    metric: Literal["auto", "cider", "bleu4", "accuracy", "macro_f1"] = "auto"
    """Validation score that picks the best weights: of freely decoded captions, or of classes ("auto": cider for
    captions, accuracy for classes)."""
    choose_search: bool = False
    """In the end try beams, length penalties and weights of the consensus on the validation pictures; ship the best."""
    patience: int = 0
    """Stop after this many validations without a better score (0: never)."""
    validate_every: int = 1
    """Epochs between validations."""
    validate_limit: int = 1000
    """Most validation pictures scored each time (0: all)."""
    save_steps: int = 0
    """Steps between checkpoints, beside the one at the end of each epoch (0: none by steps)."""
    save_minutes: float = 10.0
    """Minutes between checkpoints, likewise (0: none by time)."""
    keep: int = 2
    """Latest checkpoints kept, beside the best."""
    keep_every: int = 0
    """Also keep the first checkpoint of every so many steps (0: none)."""
    bad_steps: int = 10
    """Steps with a loss or gradient that is no number, beyond one in ten, before the run goes back and slows down."""
    unreadable: float = 0.05
    """Largest share of an epoch's pictures that may turn out unreadable before the run ends."""
    workers: int = -1
    """Processes that read pictures (0: the training process itself; -1: as many as pay)."""
    features: bool = True
    """Learn from stored features when the encoder is frozen, rather than run it each time."""


@dataclass(frozen=True)
class SearchConfig:
    method: Literal["beam", "greedy", "diverse", "sample"] = "beam"
    """The likeliest captions, the likeliest word each time, captions in groups that differ, or drawn by chance."""
    beam: int = 3
    """Beams kept; in diverse search, in all groups together."""
    num: int = 1
    """Captions returned for a picture."""
    max_length: int = 30
    """Most tokens in a caption."""
    min_length: int = 1
    """Fewest tokens before a caption may end."""
    length_penalty: float = 0.7
    """Exponent of the length that a score is divided by: 0 favours short captions, 1 the mean per token."""
    consensus: float = 0.0
    """How much it counts that a caption says what people are likely to agree on, as guessed from the whole picture,
    beside how likely the model finds it (beam, diverse; 0: not at all). What is guessed is learned when all else is:
    validations on the way search without it."""
    no_repeat: int = 0
    """Never write the same run of this many tokens twice (0: allowed)."""
    say_once: bool = False
    """Never say a word of content twice in a caption (in English, German, French, Czech, Spanish alone)."""
    groups: int = 3
    """Groups of beams (diverse)."""
    diversity: float = 0.5
    """Penalty for a token that an earlier group chose at the same place (diverse)."""
    temperature: float = 1.0
    """Above 1 flatter, below 1 sharper (sample)."""
    top_p: float = 0.9
    """Draw from the fewest tokens that hold this much probability (sample)."""
    seed: int = 0
    """Seed of the draws (sample)."""


@dataclass(frozen=True)
class HealthConfig:
    restarts: int = 3
    """Times that failed processes are started again without a newer checkpoint in between."""
    hang_minutes: float = 10.0
    """Minutes without any progress after which the processes are ended and started again (0: never)."""
    sample_seconds: float = 15.0
    """Seconds between looks at memory, disk, GPU and loader (0: none)."""
    disk_gb: float = 1.0
    """Free GB on the disk of the run below which an alert is raised."""
    memory: float = 0.92
    """Share of the memory (or of the container's limit) in use that raises an alert (here and below, 0: none)."""
    gpu_memory: float = 0.97
    """Share of a GPU's memory in use that raises an alert."""
    gpu_celsius: float = 88.0
    """Temperature of a GPU that raises an alert."""
    loader: float = 0.5
    """Share of the time spent waiting for pictures that raises an alert."""
    checkpoint_minutes: float = 60.0
    """Age of the newest checkpoint that raises an alert."""
    webhook: str = ""
    """Address that alerts are posted to, as JSON."""
    command: str = ""
    """Command run at an alert, with the alert as JSON on its standard input."""
    port: int = 0
    """Port that serves Prometheus metrics (0: none)."""


@dataclass(frozen=True)
class Config:
    name: str = "captioner"
    """Part of the run folder's name."""
    task: Literal["captions", "classes", "both"] = "captions"
    """What to learn of pictures: what to say of them, which class they are of, or both with one encoder."""
    seed: int = 0
    """Seed of every random choice: the same seed, data and machine give the same run."""
    output: str = "runs"
    """Folder that holds the run folders."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    threads: int = 0
    """CPU threads (0: all)."""
    processes: int = 1
    """Processes that share each step's pictures, on this machine; each has a GPU of its own where there are any."""
    data: DataConfig = field(default_factory=DataConfig)
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    words: WordsConfig = field(default_factory=WordsConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    classes: ClassesConfig = field(default_factory=ClassesConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    stages: tuple[dict[str, Any], ...] = ()
    """Learn in stages, each from the best weights of those before it, with these changes to the settings above."""
    health: HealthConfig = field(default_factory=HealthConfig)

    def stage(self, number: int) -> Config:
        """All settings of one stage, by its number from 0."""
        if not self.stages:
            return self
        return from_dict(self.stages[number], dataclasses.replace(self, stages=()))

    @property
    def all_stages(self) -> tuple[Config, ...]:
        """The settings of each; of a run without stages, its own."""
        return tuple(self.stage(number) for number in range(max(1, len(self.stages))))

    @property
    def metric(self) -> str:
        """The validation score that picks the best weights."""
        named = self.training.metric
        return named if named != "auto" else "accuracy" if self.task == "classes" else "cider"


STAGED = ("training", "pictures", "encoder")
"""Tables that a stage may change: the words, the decoder and the data are the same in all."""
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("data.val_share", "data.test_share", "pictures.augment_colour", "training.ema"), (0, 1)),
    **dict.fromkeys(("training.label_smoothing", "training.scheduled_sampling", "decoder.dropout"), (0, 1)),
    **dict.fromkeys(("classes.dropout", "pictures.augment_erase"), (0, 1)),
    **dict.fromkeys(("pictures.augment_mixup", "pictures.augment_cutmix", "classes.weight"), (0, math.inf)),
    "pictures.augment_rand": (0, 30),
    "classes.hidden": (1, math.inf),
    "encoder.decay": (0.01, 1),
    **dict.fromkeys(("data.limit", "pictures.size", "decoder.embed", "encoder.rate"), (0, math.inf)),
    **dict.fromkeys(("training.rate", "training.weight_decay", "training.warmup", "training.clip"), (0, math.inf)),
    **dict.fromkeys(("training.patience", "training.save_steps", "training.validate_limit"), (0, math.inf)),
    **dict.fromkeys(("training.attention_weight", "training.keep"), (0, math.inf)),
    "training.workers": (-1, math.inf),
    **dict.fromkeys(("data.scenes", "words.min_count", "words.max_size", "words.max_length"), (1, math.inf)),
    **dict.fromkeys(("decoder.hidden", "decoder.layers", "decoder.heads", "training.epochs"), (1, math.inf)),
    **dict.fromkeys(("training.batch", "training.captions", "training.accumulate"), (1, math.inf)),
    **dict.fromkeys(("training.validate_every", "training.step_epochs"), (1, math.inf)),
    **dict.fromkeys(("training.save_minutes", "training.keep_every", "health.restarts"), (0, math.inf)),
    **dict.fromkeys(("health.hang_minutes", "health.sample_seconds", "health.disk_gb"), (0, math.inf)),
    **dict.fromkeys(("health.gpu_celsius", "health.checkpoint_minutes"), (0, math.inf)),
    **dict.fromkeys(("health.memory", "health.gpu_memory", "health.loader", "training.unreadable"), (0, 1)),
    "training.reward_bleu": (0, math.inf),
    **dict.fromkeys(("training.ground", "training.minutes"), (0, math.inf)),
    **dict.fromkeys(("training.bad_steps", "processes"), (1, math.inf)),
    "health.port": (0, 65535),
    "threads": (0, 4096),
    **dict.fromkeys(("seed", "search.seed"), (0, 2**63 - 1)),
    **dict.fromkeys(("pictures.augment_crop", "pictures.grow"), (0.01, 1)),
    "training.drop": (0, 1),
}
"""Smallest and largest value of numbers that could not mean anything else. Search checks its own."""


def to_dict(config: Any) -> dict[str, Any]:
    """Plain tables and lists, for TOML and JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return {key: plain(value) for key, value in dataclasses.asdict(config).items()}


def flat(tables: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Every value by its whole name: `{"training": {"rate": 1}}` is `{"training.rate": 1}`."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


def from_dict(tables: dict[str, Any], base: Config | None = None) -> Config:
    """`base` with the given values in place of its own; unknown keys and wrong kinds are refused."""
    config = _merge(base or Config(), tables, "")
    assert isinstance(config, Config)
    _agree(config)
    for number, stage in enumerate(config.stages):
        if odd := [key for key in stage if key not in STAGED]:
            raise ConfigError(f"stage {number + 1} changes '{odd[0]}'", expected=", ".join(STAGED))
        try:
            metric, encoder = config.stage(number).metric, config.stage(number).encoder
        except ConfigError as error:
            raise ConfigError(f"stage {number + 1}: {error.what}", expected=error.expected, fix=error.fix) from None
        if (encoder.name, encoder.weights) != (config.encoder.name, config.encoder.weights):
            raise ConfigError(
                f"stage {number + 1} has another encoder, or other weights, than the run",
                expected="changes to its train, rate and decay: each stage goes on from what was learned before it",
                fix="name encoder and weights in [encoder], and in no stage",
            )
        if stage.get("training", {}).get("precision") == "auto":
            raise ConfigError(
                f"stage {number + 1} leaves its precision open", expected='fp32, bf16 or fp16; "auto" is for all stages'
            )
        if config.stage(number).training.validate_limit != config.training.validate_limit:
            raise ConfigError(
                f"stage {number + 1} validates on another number of pictures than the run",
                expected="one training.validate_limit for all stages, whose scores are compared",
                fix="name it in [training], and in no stage",
            )
        if metric != config.metric:  # the best of all stages is one, and scores of two metrics cannot be compared
            raise ConfigError(
                f"stage {number + 1} has the metric '{metric}', the run '{config.metric}'",
                expected="one metric for all stages",
                fix="name it in [training], and in no stage",
            )
    return config


def _agree(config: Config) -> None:
    """Refuse settings that have no meaning beside each other."""
    pictures, own = config.pictures, {"captions": ("cider", "bleu4"), "classes": ("accuracy", "macro_f1")}
    scores = own.get(config.task, (*own["captions"], *own["classes"]))
    if config.metric not in scores:
        raise ConfigError(f"the metric is '{config.metric}', the task '{config.task}'", expected=", ".join(scores))
    training = config.training
    # Of a run in stages each is asked for itself, and not what they all change.
    compares = training.objective == "self_critical" and config.task != "classes" and not config.stages
    if compares and training.captions < 2:
        raise ConfigError(
            f"with training.captions = {training.captions} there is none to be better than, and nothing is learned",
            expected="2 or more of them",
            fix='training.captions = 5, or training.objective = "cross_entropy"',
        )
    if config.task != "classes" and (pictures.augment_mixup or pictures.augment_cutmix):
        raise ConfigError(
            f"mixup and cutmix make one picture of two, and the task '{config.task}' has no caption for that",
            expected='task = "classes", or augment_mixup = 0 and augment_cutmix = 0',
        )
    if config.task != "classes" and pictures.grow < 1:
        raise ConfigError(
            f"pictures.grow = {pictures.grow:g}, but what writes captions looks at a grid of one size",
            expected='task = "classes", or grow = 1; [[stages]] may have a pictures.size each',
        )


def load(path: Path, base: Config | None = None) -> Config:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except FileNotFoundError:
        raise ConfigError(f"no config file {path}", fix="cutline train --print-config > config.toml") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", expected="a config file") from None
    except ValueError as error:  # no TOML, no text, or a number of thousands of digits
        raise ConfigError(f"{path} is not TOML: {error}") from None
    try:
        return from_dict(tables, base)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.what}", expected=error.expected, fix=error.fix) from None


def to_toml(config: Config) -> str:
    return str(require("tomli_w", "train", "writing a config file").dumps(to_dict(config)))


def _merge(base: Any, table: dict[str, Any], where: str) -> Any:
    types_of = get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{where}{key}"
        if key not in types_of:
            raise ConfigError(f"unknown setting '{name}'{nearest(key, types_of)}", expected=", ".join(types_of))
        old = getattr(base, key)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, dict):
                raise ConfigError(f"'{name}' is a table of settings", expected=f"[{name}]")
            changes[key] = _merge(old, value, f"{name}.")
        else:
            changes[key] = _check(value, types_of[key], name)
    return dataclasses.replace(base, **changes)


def _check(value: Any, kind: Any, name: str) -> Any:
    """`value` as `kind`: exactly, but for whole numbers given for a float and lists given for a tuple."""
    origin = get_origin(kind)
    if origin is Literal:
        if value in get_args(kind):
            return value
        choices = ", ".join(map(repr, get_args(kind)))
        hint = nearest(value, map(str, get_args(kind))) if isinstance(value, str) else ""
        raise ConfigError(f"'{name}' is {value!r}{hint}", expected=choices)
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_check(item, get_args(kind)[0], name) for item in value)
    elif (origin is dict and isinstance(value, dict)) or origin in (Union, types.UnionType):
        return value
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(_within(value, name))
    elif type(value) is kind:
        return _within(value, name) if kind is int else _written(value, name) if kind is str else value
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    other = "a table of settings" if origin is dict else "a list"
    raise ConfigError(f"'{name}' is {value!r}", expected=words.get(kind, other))


def _written(value: str, name: str) -> str:
    """What a run's files can hold: a shell passes on any bytes as the name of a folder."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"'{name}' is {value!a}", expected="text in UTF-8", fix="rename what it names") from None
    return value


def _within(value: float, name: str) -> float:
    low, high = _RANGES.get(name, (-math.inf, math.inf))
    fits = abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)
    if not fits:
        raise ConfigError(f"'{name}' is {value}", expected="a finite number, and a whole one of at most 64 bits")
    if low <= value <= high:
        return value
    bounds = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
    raise ConfigError(f"'{name}' is {value}", expected=bounds)
