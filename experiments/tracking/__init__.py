"""What MLflow gets to know of a run, while it runs (`Tracker`) or afterwards (`RunUpload`): what the run folder holds and MLflow lacks."""

from experiments.tracking.run_upload import RunUpload
from experiments.tracking.sweep import sweep
from experiments.tracking.tracker import Tracker

__all__ = ["RunUpload", "Tracker", "sweep"]
