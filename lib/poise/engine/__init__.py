"""Train one epoch, test one set, and what lies around them: devices, schedules, checkpoints,
logs.
"""
