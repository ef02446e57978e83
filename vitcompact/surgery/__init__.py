"""Surgery: plans applied to models, with values solved from calibration images."""

from vitcompact.surgery.convert import convert
from vitcompact.surgery.fidelity import Fidelity

__all__ = ["Fidelity", "convert"]
