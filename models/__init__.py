"""Nets, codecs, detectors, weights and the clock. Knows no table, no Dask, no video file."""

import logging
import os

# `xstreamer models fetch` alone reaches for the network: libraries behind ours (bitsandbytes, which diffusers imports
# where it is installed) would fetch code from a hub while they are imported, and complain where they cannot.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
