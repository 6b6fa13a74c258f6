"""Whole configurations by name. Each opens with its command, how long it takes on two cores, and what to expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cutline.config import (
    ClassesConfig,
    Config,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    PicturesConfig,
    SearchConfig,
    TrainingConfig,
    WordsConfig,
)


def scenes() -> Config:
    """`cutline train --preset scenes`: a captioner from scratch on pictures that Cutline draws itself."""
    return Config(
        name="scenes",
        data=DataConfig(path="scenes", languages=("en",), scenes=3000),
        words=WordsConfig(min_count=1),
        encoder=EncoderConfig(name="small"),
        decoder=DecoderConfig(kind="lstm", attention="luong", hidden=256, dropout=0.1),
        training=TrainingConfig(
            epochs=20, batch=32, captions=5, rate=2e-3, warmup=50, label_smoothing=0.05, validate_every=5,
            validate_limit=150, clip=1.0,
        ),
        search=SearchConfig(max_length=24),
    )  # fmt: skip


def frozen() -> Config:
    """`cutline train --data PICTURES`: your own pictures, and an encoder that stays as it is.

    The encoder runs once over every picture; after that an epoch costs seconds.
    """
    return Config(
        name="frozen",
        words=WordsConfig(min_count=5),
        encoder=EncoderConfig(name="mobilenetv2_100", train="nothing"),
        decoder=DecoderConfig(kind="lstm", attention="luong", hidden=512, dropout=0.5),
        training=TrainingConfig(epochs=12, batch=32, captions=5, rate=6e-4, label_smoothing=0.1, patience=4),
        search=SearchConfig(beam=5, max_length=24, say_once=True, consensus=2.0),
    )


def finetuned() -> Config:
    """`cutline train --preset finetuned --data PICTURES`: the encoder learns too, on changing pictures; wants a GPU."""
    base = frozen()
    return Config(
        name="finetuned",
        pictures=PicturesConfig(augment_crop=0.7, augment_flip=True, augment_colour=0.2),
        words=base.words,
        encoder=EncoderConfig(name="mobilenetv2_100", train="all", rate=1e-4),
        decoder=base.decoder,
        training=base.training,
        search=base.search,
    )


def flickr8k() -> Config:
    """`cutline train --preset flickr8k --data FOLDER`: every language that the folder has; docs/quality.md has scores.

    First from stored features, then with an encoder that learns too, then on larger pictures, which have more regions,
    and last by what captions of its own score. The averages of the last two stages are so slow that half of each is
    what the stage began with. This stands for a mean of weights from before and after those stages, made by hand, which
    did better than any of them: the slow averages do as well.
    """
    larger = {"size": 288, "augment_crop": 0.4, "augment_flip": True, "augment_colour": 0.3}
    return Config(
        name="flickr8k",
        words=WordsConfig(min_count=4),
        encoder=EncoderConfig(name="mobilenetv2_100", train="nothing"),
        decoder=DecoderConfig(kind="lstm", attention="luong", hidden=512, dropout=0.5),
        training=TrainingConfig(
            batch=32, captions=5, precision="auto", ema=0.998, validate_every=2, validate_limit=400, choose_search=True
        ),
        search=SearchConfig(beam=3, max_length=24, say_once=True, consensus=2.0),
        stages=(
            {"training": {"epochs": 3, "rate": 8e-4, "schedule": "constant", "validate_every": 3}},
            {
                "encoder": {"train": "stage3", "rate": 1.5e-4},
                "pictures": {"augment_crop": 0.5, "augment_flip": True, "augment_colour": 0.2},
                "training": {"epochs": 12, "rate": 6e-4},
            },
            {
                "encoder": {"train": "stage3", "rate": 1e-4},
                "pictures": larger,
                "training": {"epochs": 6, "rate": 4e-4, "warmup": 50, "ema": 0.9994},
            },
            {
                "pictures": larger,
                "training": {
                    "epochs": 1, "objective": "self_critical", "rate": 1e-4, "schedule": "constant", "warmup": 50,
                    "reward_bleu": 1.0, "ground": 0.05, "ema": 0.9965, "validate_every": 1,
                },
            },
        ),
    )  # fmt: skip


def coco() -> Config:
    """`cutline train --preset coco --data FOLDER --format karpathy`: close to how published figures have been made.

    ResNet-101 as it is, words seen five times, an LSTM of 512 with additive attention, cross-entropy at a rate that
    falls by a fifth every three epochs, then self-critical training. Smoothing, averaging and the consensus are ours,
    and so are 7 x 7 regions where many have seen 14 x 14.
    Karpathy's split has 113,287 pictures to learn from; --dry-run says what that takes here. It wants a GPU.
    """
    return Config(
        name="coco",
        data=DataConfig(languages=("en",)),
        words=WordsConfig(min_count=5, max_length=20),
        encoder=EncoderConfig(name="resnet101", train="nothing"),
        decoder=DecoderConfig(kind="lstm", attention="bahdanau", hidden=512, dropout=0.5),
        training=TrainingConfig(
            batch=64, captions=5, precision="auto", ema=0.999, validate_limit=5000, save_minutes=5, choose_search=True
        ),
        search=SearchConfig(beam=5, max_length=20, consensus=2.0),
        stages=(
            {"training": {"epochs": 15, "rate": 5e-4, "schedule": "step", "step_epochs": 3, "drop": 0.8}},
            {
                "training": {
                    "epochs": 15, "objective": "self_critical", "rate": 5e-5, "schedule": "constant",
                    "label_smoothing": 0.0,
                }
            },
        ),
    )  # fmt: skip


def probe() -> Config:
    """`cutline train --preset probe --data PICTURES`: classes by one layer on an encoder that stays as it is.

    The encoder runs once over every picture; after that an epoch costs a second or less.
    """
    return Config(
        name="probe",
        task="classes",
        encoder=EncoderConfig(name="mobilenetv2_100", train="nothing"),
        classes=ClassesConfig(dropout=0.2),
        training=TrainingConfig(
            epochs=30, batch=128, rate=2e-3, weight_decay=1e-3, warmup=50, patience=6, validate_limit=0
        ),
    )


def transfer() -> Config:
    """`cutline train --preset transfer --data PICTURES`: classes by an encoder that learns on from given weights.

    The head first, from stored features; then all of it, and the nearer a stage of the encoder is to the picture, the
    less it changes.
    """
    base = probe()
    return replace(
        base,
        name="transfer",
        training=replace(base.training, batch=64, precision="auto", patience=0),
        stages=(
            {"training": {"epochs": 10, "batch": 128, "precision": "fp32", "validate_every": 5}},
            {
                "encoder": {"train": "all", "rate": 4e-4, "decay": 0.8},
                "pictures": {"augment_crop": 0.5, "augment_flip": True, "augment_colour": 0.2, "augment_rand": 5},
                "training": {"epochs": 8, "rate": 8e-4, "ema": 0.995},
            },
        ),
    )


def scratch() -> Config:
    """`cutline train --preset scratch --data PICTURES`: classes of small pictures, by our own network, from scratch.

    For pictures of about 64 x 64. Blended and cut pictures keep it from learning a few thousand of them by heart.
    """
    return Config(
        name="scratch",
        task="classes",
        pictures=PicturesConfig(
            size=64, grow=0.5, augment_crop=0.4, augment_flip=True, augment_colour=0.2, augment_mixup=0.1,
            augment_cutmix=0.5,
        ),
        encoder=EncoderConfig(name="cnn:width=48"),
        training=TrainingConfig(
            epochs=65, batch=128, optimizer="muon", rate=3e-3, weight_decay=0.05, warmup=100, precision="auto",
            ema=0.998, validate_limit=0, validate_every=5,
        ),
    )  # fmt: skip


PRESETS: dict[str, Callable[[], Config]] = {
    "scenes": scenes,
    "frozen": frozen,
    "finetuned": finetuned,
    "flickr8k": flickr8k,
    "coco": coco,
    "probe": probe,
    "transfer": transfer,
    "scratch": scratch,
}
