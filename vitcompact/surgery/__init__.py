"""Surgery: plans applied to models, with values solved from calibration images."""

from vitcompact.surgery.convert import Fidelity, convert
from vitcompact.surgery.replay import replay

__all__ = ["Fidelity", "convert", "replay"]
