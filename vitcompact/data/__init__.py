"""Images: opening data sets by timm's rules, calibration, evaluation and training batches."""

from vitcompact.data.apart import is_apart, taken_apart
from vitcompact.data.augment import check_policy
from vitcompact.data.batches import ImageBatches, TensorImages, first_images, from_tensor, rebatched
from vitcompact.data.boundary import check_images, check_model, check_weights, has_no_weights, images_for
from vitcompact.data.calibration import CalibrationImages
from vitcompact.data.classes import names_to_show
from vitcompact.data.config import InputConfig, as_pixels, eval_transform, normalize, resolve_input
from vitcompact.data.decode import Skipped
from vitcompact.data.evaluation import EvaluationBatches, evaluation_batches
from vitcompact.data.fingerprint import fingerprint
from vitcompact.data.image_set import ImageSet, StreamSet
from vitcompact.data.inner import Opened, open_model, unwrapped
from vitcompact.data.open import open_dataset
from vitcompact.data.overlap import overlap
from vitcompact.data.probing import probe_batches
from vitcompact.data.share import ImageShare, example_of, placed, processes_of, shared_images
from vitcompact.data.training import TrainingBatches, training_loader
from vitcompact.data.variety import num_distinct
from vitcompact.options.data import Augment, DataOptions

__all__ = [
    "Augment",
    "CalibrationImages",
    "DataOptions",
    "EvaluationBatches",
    "ImageBatches",
    "ImageSet",
    "ImageShare",
    "InputConfig",
    "Opened",
    "Skipped",
    "StreamSet",
    "TensorImages",
    "TrainingBatches",
    "as_pixels",
    "check_images",
    "check_model",
    "check_policy",
    "check_weights",
    "eval_transform",
    "evaluation_batches",
    "example_of",
    "fingerprint",
    "first_images",
    "from_tensor",
    "has_no_weights",
    "images_for",
    "is_apart",
    "names_to_show",
    "normalize",
    "num_distinct",
    "open_dataset",
    "open_model",
    "overlap",
    "placed",
    "probe_batches",
    "processes_of",
    "rebatched",
    "resolve_input",
    "shared_images",
    "taken_apart",
    "training_loader",
    "unwrapped",
]
