"""Data files to batches: sources, shapes, chat templates, loss masks, packing and order."""

from ince.data.batch import IGNORED, Batch, attention_mask, collate
from ince.data.config import DataConfig
from ince.data.conversation import Conversation, Document, Message
from ince.data.dataset import Split, SplitReport, load_split
from ince.data.example import Example
from ince.data.order import epoch_order
from ince.data.packing import Row, pack_rows, single_rows
from ince.data.rows import FileRow, RowProblem
from ince.data.shapes import SHAPES, convert_row, detect_shape
from ince.data.sources import SourceFile, read_rows, read_source
from ince.data.template import Encoder, encode

__all__ = [
    "IGNORED",
    "SHAPES",
    "Batch",
    "Conversation",
    "DataConfig",
    "Document",
    "Encoder",
    "Example",
    "FileRow",
    "Message",
    "Row",
    "RowProblem",
    "SourceFile",
    "Split",
    "SplitReport",
    "attention_mask",
    "collate",
    "convert_row",
    "detect_shape",
    "encode",
    "epoch_order",
    "load_split",
    "pack_rows",
    "read_rows",
    "read_source",
    "single_rows",
]
