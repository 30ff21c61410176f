"""Data files to batches: sources, shapes, chat templates, loss masks, packing and order."""

from ince.data.batch import Batch, attention_mask
from ince.data.collation import collate
from ince.data.config import DataConfig
from ince.data.contract import check_batch, check_example
from ince.data.conversation import Completion, Conversation, Document, Item, Message
from ince.data.dataset import Split, SplitReport, load_split
from ince.data.example import IGNORED, Example
from ince.data.order import epoch_order
from ince.data.packing import PackingFacts, Row, pack_rows, single_rows
from ince.data.rows import FileRow, RowProblem
from ince.data.shapes import SHAPES, convert_row, detect_shape
from ince.data.sources import SourceFile, read_rows, read_source
from ince.data.template import Encoder
from ince.data.truncation import Fitted, Lost, encode, fit

__all__ = [
    "IGNORED",
    "SHAPES",
    "Batch",
    "Completion",
    "Conversation",
    "DataConfig",
    "Document",
    "Encoder",
    "Example",
    "FileRow",
    "Fitted",
    "Item",
    "Lost",
    "Message",
    "PackingFacts",
    "Row",
    "RowProblem",
    "SourceFile",
    "Split",
    "SplitReport",
    "attention_mask",
    "check_batch",
    "check_example",
    "collate",
    "convert_row",
    "detect_shape",
    "encode",
    "epoch_order",
    "fit",
    "load_split",
    "pack_rows",
    "read_rows",
    "read_source",
    "single_rows",
]
