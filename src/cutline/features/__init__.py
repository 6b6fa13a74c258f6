"""The feature store: what a frozen encoder sees in each picture, computed once and read many times."""

from cutline.features.build import build, open_or_build, store_path
from cutline.features.store import FeatureStore, StoreKey

__all__ = ["FeatureStore", "StoreKey", "build", "open_or_build", "store_path"]
