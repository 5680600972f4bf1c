"""What one message may hold, on both ends. gRPC's own default is 4 MiB."""

from __future__ import annotations

MIB = 1024 * 1024

MAX_REQUEST_BYTES = 36 * MIB  # a file of 32 MiB, or a context of 16 MiB and a query
MAX_RESPONSE_BYTES = 64 * MIB  # a record with a whole conversation in it
CHUNK_BYTES = 1 * MIB  # of an upload
INLINE_BYTES = 16 * MIB  # a context within a request; larger ones are uploaded
MAX_FILE_BYTES = 32 * MIB
MAX_METADATA_BYTES = 64 * 1024
QUERY_BYTES = 1 * MIB  # what is longer is a context
SETTINGS_BYTES = 1 * MIB  # as JSON: instructions and model options have no length of their own
DEFAULT_PAGE, MAX_PAGE = 50, 1000

LABELS, LABEL_BYTES = 32, 256
REQUEST_ID_CHARS = 128
