"""Surgery: plans applied to models, with values solved from calibration images."""

from vitcompact.surgery.convert import Fidelity, convert

__all__ = ["Fidelity", "convert"]
