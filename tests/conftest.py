"""gRPC's core writes lines of its own about connections that tests cut; it reads this when it is first imported."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
