"""What holds for all tests."""

import torch

# tiny models are slower on several threads, and much slower where other tests run beside them
torch.set_num_threads(1)
