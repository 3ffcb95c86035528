"""A discrete-event cluster that runs the scheduler's own policies on traces. No network, no clock."""
