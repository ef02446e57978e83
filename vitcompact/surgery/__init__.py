"""Surgery: plans applied to models, with values solved from calibration images."""

from vitcompact.surgery.convert import convert
from vitcompact.surgery.fidelity import Fidelity
from vitcompact.surgery.plan import plan

__all__ = ["Fidelity", "convert", "plan"]
