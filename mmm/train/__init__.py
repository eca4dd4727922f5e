"""Training: one loop through which every task goes, and what a task needs around it."""

from mmm.train.config import RunConfig, TrainConfig, identity
from mmm.train.distributed.fsdp import sharding_asked
from mmm.train.distributed.setup import start, with_precision
from mmm.train.memory.usage import checkpoint_blocks
from mmm.train.optimizer import make_optimizer
from mmm.train.run.folder import RunFolder
from mmm.train.schedule import Plan, make_plan
from mmm.train.session import Session, open_session, preview
from mmm.train.state import Training

__all__ = [
    "Plan",
    "RunConfig",
    "RunFolder",
    "Session",
    "TrainConfig",
    "Training",
    "checkpoint_blocks",
    "identity",
    "make_optimizer",
    "make_plan",
    "open_session",
    "preview",
    "sharding_asked",
    "start",
    "with_precision",
]
