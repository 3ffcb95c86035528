"""What workers share: the Worker actor, frames, batches, and the Engine protocol."""

from sage_worker.assigned import Assigned
from sage_worker.batch_loop import BatchLoop
from sage_worker.engine import Capacity, Engine, EngineStats, StepCost
from sage_worker.formed_batches import FormedBatch
from sage_worker.frame_writer import FrameWriter, Outlet
from sage_worker.worker import Worker

__all__ = [
    "Assigned",
    "BatchLoop",
    "Capacity",
    "Engine",
    "EngineStats",
    "FormedBatch",
    "FrameWriter",
    "Outlet",
    "StepCost",
    "Worker",
]
