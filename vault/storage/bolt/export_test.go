package bolt

// Datasync is the sync that the engine uses.
var Datasync = datasync

// Row is a decoded copy of a cell.
type Row = row

// EncodeRow, DecodeRow and DecodeCellsHeader are the codec of vault.cells.
func EncodeRow(r Row, fileID [16]byte, n uint32) [128]byte { return r.encode(fileID, n) }

func DecodeRow(b []byte, fileID [16]byte, n uint32) (Row, bool) { return decodeRow(b, fileID, n) }

func NewRow(state uint8, seq uint64, id [16]byte, z [32]byte) Row {
	return row{state: state, seq: seq, id: id, z: z}
}

// ReencodeCellsHeader returns the header of b written anew, or nil.
func ReencodeCellsHeader(b []byte) []byte {
	h := decodeCellsHeader(b)
	if h == nil {
		return nil
	}
	return h.encode()
}

// ReencodeMark returns the mark of b written anew, or nil.
func ReencodeMark(b []byte) []byte {
	h, end, ok := decodeMark(b)
	if !ok {
		return nil
	}
	return encodeMark(h, end)
}

// ParseSeq reads the head of a line.
var ParseSeq = parseSeq

// Fields of vault.cells.
const (
	CellsStart = cellsStart
	BlockSize  = blockSize
	RowSize    = rowSize
)

// NewMark returns the bytes of a mark.
var NewMark = encodeMark
