"""How many pictures each class has, in each split, and what of it will show in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cutline.data.corpus import SPLITS, Problem, Sample


@dataclass(frozen=True)
class Balance:
    """How evenly the pictures are spread over the classes."""

    classes: int
    most: int
    commonest: str
    least: int
    rarest: str
    share: float
    """Of pictures that are of the commonest class, 0 to 1: what guessing it always would score."""

    @property
    def ratio(self) -> float:
        return self.most / self.least


def count_labels(samples: Iterable[Sample]) -> dict[str, dict[str, int]]:
    """Pictures of each class in each split, the class with the most first."""
    counts: dict[str, dict[str, int]] = {}
    for sample in samples:
        if sample.label is not None:
            counts.setdefault(sample.label, dict.fromkeys(SPLITS, 0))[sample.split] += 1
    return dict(sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0])))


def balance(counts: dict[str, dict[str, int]]) -> Balance | None:
    """Of what `count_labels` counted; None where there is no class."""
    totals = {label: sum(each.values()) for label, each in counts.items()}
    if not totals:
        return None
    commonest, rarest = next(iter(totals)), next(reversed(totals))
    share = totals[commonest] / sum(totals.values())
    return Balance(len(totals), totals[commonest], commonest, totals[rarest], rarest, share)


def evenly(samples: Sequence[Sample], most: int) -> Sequence[Sample]:
    """At most so many of them, from all along their order: the first ones of a folder of classes are of one class."""
    return [samples[place * len(samples) // most] for place in range(most)] if len(samples) > most else samples


def oddities(samples: Iterable[Sample]) -> list[Problem]:
    """Classes that cannot be learned, or cannot be judged, or may be one. Training goes on all the same."""
    samples = list(samples)
    counts = count_labels(samples)
    first: dict[str, Sample] = {}
    alike: dict[str, list[str]] = {}
    for sample in samples:
        if sample.label is not None and sample.label not in first:
            first[sample.label] = sample
            alike.setdefault(sample.label.casefold(), []).append(sample.label)
    found = []
    for label, by_split in counts.items():
        place, total = first[label].image, sum(by_split.values())
        if not by_split["train"]:
            where = " and ".join(f"{count:,} in {split}" for split, count in by_split.items() if count)
            message = f"class never learned: '{label}' has {where} and none in train, so no guess at them can be right"
            found.append(Problem(place, None, message))
        elif total == 1:
            found.append(Problem(place, None, f"class with one picture: nothing is left to judge '{label}' by"))
    if len(counts) == 1:
        (label,) = counts
        message = f"only one class: '{label}' (where the folders in it are the classes, name it instead)"
        found.append(Problem(first[label].image, None, message))
    for names in alike.values():
        if len(names) > 1:
            told = " and ".join(f"'{name}'" for name in names)
            found.append(Problem(first[names[1]].image, None, f"class names that differ in case only: {told}"))
    return found
