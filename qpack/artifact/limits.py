"""Limits of the format, those inside a rANS segment apart (`qpack.codec.rans` has them).

docs/FORMAT.md states them all; tests stand on each edge.

A number from a file is compared with these before anything is allocated from it.
"""

from __future__ import annotations

HEADER_BYTES_MAX = 1 << 20
"""stored and decoded header, each"""
JSON_DEPTH_MAX = 8
INTEGER_MAX = (1 << 63) - 1
"""largest integer in the header"""
TENSORS_MAX = 65_536
"""tensors and aliases together"""
NAME_BYTES_MAX = 512
"""UTF-8 bytes of a tensor name, an alias or a metadata key"""
RANK_MAX = 8
DIM_MAX = (1 << 31) - 1
ELEMENTS_MAX = 1 << 40
METADATA_MAX = 256
FILES_MAX = 1_024
FILE_NAME_BYTES_MAX = 255
STREAMS_MAX = 4_096
DECODED_BYTES_MAX = 4 << 30
"""default of `max_decoded_bytes`: all streams of a file together"""
EXPANSION_MAX = 1_024
"""decoded bytes of all streams over bytes of the file"""
DECODER_BYTES_MAX = 1 << 20
"""source of the decoder in a .pyz"""
ZIP_BYTES_MAX = (1 << 32) - 1
"""a .pyz is a zip without 64-bit fields"""
