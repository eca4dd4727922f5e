"""Data: where samples are, how they are read, in which order they come, and how a batch is made."""

from mmm.data.clip_config import ClipsConfig
from mmm.data.config import DataConfig, ImagesConfig
from mmm.data.datasets.clips import Clips
from mmm.data.datasets.images import Images, open_images
from mmm.data.datasets.open import open_data
from mmm.data.errors import BadInputs, Problem, Unreadable
from mmm.data.loading.loader import Batch, Order, Samples, eval_batches, train_batches
from mmm.data.sources.in_memory import register_source

__all__ = [
    "BadInputs",
    "Batch",
    "Clips",
    "ClipsConfig",
    "DataConfig",
    "Images",
    "ImagesConfig",
    "Order",
    "Problem",
    "Samples",
    "Unreadable",
    "eval_batches",
    "open_data",
    "open_images",
    "register_source",
    "train_batches",
]
