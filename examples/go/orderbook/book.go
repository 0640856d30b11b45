// Package orderbook keeps the book of one instrument from a stream of market events.
//
// It does no I/O: it takes the events of StreamOrderBook, StreamMarketData or Subscribe one after
// the other and says what may be believed. Two rules keep a book right: a snapshot replaces
// everything; an update is right only if it has the same epoch and the next sequence.
package orderbook

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"

	marketv1 "marketprism/gen/go/market/v1"
)

// digestDepth is how many levels a side a digest speaks of.
const digestDepth = 50

// Level is a price and the quantity resting there, both canonical decimal strings.
type Level struct {
	Price    string
	Quantity string
}

// OutOfStepError says that an update does not continue the book. The book is empty then: what was
// held must not be used, and only a snapshot gives a book again.
type OutOfStepError struct {
	Epoch, Sequence       uint64 // where the book stood; epoch 0 when there was none
	GotEpoch, GotSequence uint64 // what the update said
}

func (e *OutOfStepError) Error() string {
	return fmt.Sprintf("the book stands at %d/%d, and update %d/%d does not continue it",
		e.Epoch, e.Sequence, e.GotEpoch, e.GotSequence)
}

// Book is the order book of one instrument.
type Book struct {
	exchange, symbol       string
	epoch, sequence        uint64
	bids, asks             side
	bidHorizon, askHorizon string
	state                  marketv1.OrderBookState
	streamOpen             bool
	interrupted            map[string]bool
}

// New makes an empty book, which takes the events of this instrument and ignores all others.
func New(exchange, symbol string) *Book {
	return &Book{
		exchange:    exchange,
		symbol:      symbol,
		bids:        side{descending: true},
		interrupted: map[string]bool{},
	}
}

// Epoch and Sequence say where the book stands; epoch 0 means that there is no book.
func (b *Book) Epoch() uint64 { return b.epoch }

// Sequence is the number of the last update contained.
func (b *Book) Sequence() uint64 { return b.sequence }

// State is what the server told last; unspecified while it has told nothing in this stream.
func (b *Book) State() marketv1.OrderBookState { return b.state }

// Trusted tells whether the book equals the venue's: there is one, the server says that it is in
// step, and the stream that would tell otherwise is open.
func (b *Book) Trusted() bool {
	return b.epoch != 0 && b.streamOpen && len(b.interrupted) == 0 &&
		b.state == marketv1.OrderBookState_ORDER_BOOK_STATE_SYNCED
}

// Bids gives the best levels, highest first, at most depth of them (0: all). Beyond the horizon
// that the venue publishes a book is unknown, so nothing of that is given.
func (b *Book) Bids(depth int) []Level { return b.bids.best(depth, b.bidHorizon) }

// Asks is Bids for the other side, lowest first.
func (b *Book) Asks(depth int) []Level { return b.asks.best(depth, b.askHorizon) }

// Digest is the fingerprint of the best 50 levels a side by which two books are compared.
func (b *Book) Digest() string {
	hash := sha256.New()
	for _, level := range b.Bids(digestDepth) {
		fmt.Fprintf(hash, "bid %s %s\n", level.Price, level.Quantity)
	}
	for _, level := range b.Asks(digestDepth) {
		fmt.Fprintf(hash, "ask %s %s\n", level.Price, level.Quantity)
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// WriteTop writes quantity and price of the best bid, then price and quantity of the best ask.
func (b *Book) WriteTop(out io.Writer) {
	bid, ask := Level{"-", "-"}, Level{"-", "-"}
	if bids := b.Bids(1); len(bids) > 0 {
		bid = bids[0]
	}
	if asks := b.Asks(1); len(asks) > 0 {
		ask = asks[0]
	}
	fmt.Fprintf(out, "%s %s %d/%d  %s @ %s | %s @ %s\n", b.exchange, b.symbol, b.epoch, b.sequence,
		bid.Quantity, bid.Price, ask.Price, ask.Quantity)
}

// Disconnected says that the stream is over. The levels stay, because a new stream may go on where
// they stand; nothing is known of the venue until it does.
func (b *Book) Disconnected() {
	b.streamOpen = false
	clear(b.interrupted)
	b.state = marketv1.OrderBookState_ORDER_BOOK_STATE_UNSPECIFIED
}

// Apply takes the next event. It fails with an OutOfStepError when an update does not continue the
// book; a new stream is needed then, without a resume point.
func (b *Book) Apply(event *marketv1.MarketEvent) error {
	switch told := event.GetEvent().(type) {
	case *marketv1.MarketEvent_OrderBookSnapshot:
		if snapshot := told.OrderBookSnapshot; b.isMine(snapshot) {
			b.replace(snapshot)
		}
	case *marketv1.MarketEvent_OrderBookUpdate:
		if update := told.OrderBookUpdate; b.isMine(update) {
			return b.update(update)
		}
	case *marketv1.MarketEvent_OrderBookStatus:
		if status := told.OrderBookStatus; b.isMine(status) {
			b.state = status.GetState()
		}
	case *marketv1.MarketEvent_StreamStatus:
		status := told.StreamStatus
		if b.isOfMe(status) {
			b.follow(status)
		}
	}
	return nil
}

type ofInstrument interface {
	GetExchange() string
	GetSymbol() string
}

func (b *Book) isMine(event ofInstrument) bool {
	return event.GetExchange() == b.exchange && event.GetSymbol() == b.symbol
}

// isOfMe tells whether a status speaks of the book: of the whole stream, of its venue or of its
// instrument.
func (b *Book) isOfMe(status *marketv1.StreamStatus) bool {
	venue, symbol := status.GetExchange(), status.GetSymbol()
	return (venue == "" || venue == b.exchange) && (symbol == "" || symbol == b.symbol)
}

func (b *Book) follow(status *marketv1.StreamStatus) {
	// What is interrupted stays so until the same scope is open again.
	scope := status.GetExchange() + "/" + status.GetSymbol()
	switch status.GetState() {
	case marketv1.StreamState_STREAM_STATE_OPEN:
		b.streamOpen = true
		delete(b.interrupted, scope)
	case marketv1.StreamState_STREAM_STATE_INTERRUPTED:
		b.interrupted[scope] = true
	case marketv1.StreamState_STREAM_STATE_ENDED:
		b.streamOpen = false
	}
}

func (b *Book) replace(snapshot *marketv1.OrderBookSnapshot) {
	b.epoch, b.sequence = snapshot.GetEpoch(), snapshot.GetSequence()
	b.bidHorizon, b.askHorizon = snapshot.GetBidHorizon(), snapshot.GetAskHorizon()
	b.bids.levels, b.asks.levels = nil, nil
	b.bids.apply(snapshot.GetBids())
	b.asks.apply(snapshot.GetAsks())
}

func (b *Book) update(update *marketv1.OrderBookUpdate) error {
	// A merged update stands for all from its first one on.
	first := cmp.Or(update.GetFirstSequence(), update.GetSequence())
	if b.epoch == 0 || update.GetEpoch() != b.epoch || first != b.sequence+1 {
		failure := &OutOfStepError{b.epoch, b.sequence, update.GetEpoch(), update.GetSequence()}
		*b = *New(b.exchange, b.symbol)
		return failure
	}
	b.sequence = update.GetSequence()
	b.bids.apply(update.GetBids())
	b.asks.apply(update.GetAsks())
	return nil
}

// side is one side of a book, best level first.
type side struct {
	levels     []Level
	descending bool
}

// order is negative when price a is better than price b.
func (s *side) order(a, b string) int {
	if s.descending {
		return Compare(b, a)
	}
	return Compare(a, b)
}

func (s *side) apply(changes []*marketv1.PriceLevel) {
	for _, change := range changes {
		level := Level{change.GetPrice(), change.GetQuantity()}
		place, found := slices.BinarySearchFunc(s.levels, level.Price,
			func(held Level, price string) int { return s.order(held.Price, price) })
		switch {
		case level.Quantity == "0" && found:
			s.levels = slices.Delete(s.levels, place, place+1)
		case level.Quantity == "0":
			// Deleting a level that is not there is normal.
		case found:
			s.levels[place] = level
		default:
			s.levels = slices.Insert(s.levels, place, level)
		}
	}
}

func (s *side) best(depth int, horizon string) []Level {
	known := s.levels
	if horizon != "" {
		beyond, _ := slices.BinarySearchFunc(known, horizon, func(held Level, edge string) int {
			if s.order(held.Price, edge) <= 0 {
				return -1
			}
			return 1
		})
		known = known[:beyond]
	}
	if depth > 0 && depth < len(known) {
		known = known[:depth]
	}
	return slices.Clone(known)
}
