"""The evaluations that come with the library; importing them registers them."""

from mmm.evaluate.features.frozen_eval import FrozenFeatures
from mmm.evaluate.features.online_knn import OnlineKnn
from mmm.evaluate.health import Health
from mmm.evaluate.masked_loss import MaskedLoss
from mmm.evaluate.probes.few_shot_eval import FewShotProbe
from mmm.evaluate.reconstruction.gallery import ReconstructionGallery

__all__ = ["FewShotProbe", "FrozenFeatures", "Health", "MaskedLoss", "OnlineKnn", "ReconstructionGallery"]
