"""A small real model and real images, and the whole job on them."""

from vitcompact.demo.run import DemoResult, Stage, run

__all__ = ["DemoResult", "Stage", "run"]
