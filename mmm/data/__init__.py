"""Data: where samples are, how they are read, in which order they come, and how a batch is made."""

from mmm.data.bad_inputs import BadInputs, Problem, Unreadable
from mmm.data.config import DataConfig, ImagesConfig
from mmm.data.images import Images, open_images
from mmm.data.in_memory import register_source
from mmm.data.loader import Batch, Samples, eval_batches, train_batches
from mmm.data.opening import open_data
from mmm.data.sampler import Order
from mmm.data.video.clips import Clips
from mmm.data.video.config import ClipsConfig

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
