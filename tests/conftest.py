"""What all tests share: hypothesis profiles, and a single thread."""

import os

import torch
from hypothesis import HealthCheck, settings

# How long an example takes says nothing on a busy machine.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("default", **_PATIENT)
settings.register_profile("soak", **_PATIENT, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# The tests' tensors are tiny: on a busy machine a second thread is waited for 30 times as long as
# the arithmetic takes.
torch.set_num_threads(1)
