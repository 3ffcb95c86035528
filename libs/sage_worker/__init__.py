"""What workers share: the Worker actor, frames, batches, and the Engine protocol."""

from sage_worker.assigned import Assigned
from sage_worker.batch_loop import BatchLoop
from sage_worker.engine import Capacity, Engine, EngineStats
from sage_worker.frame_writer import FrameWriter, Outlet
from sage_worker.worker import Worker

__all__ = [
    "Assigned",
    "BatchLoop",
    "Capacity",
    "Engine",
    "EngineStats",
    "FrameWriter",
    "Outlet",
    "Worker",
]
