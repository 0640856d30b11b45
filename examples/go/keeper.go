package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"marketprism/examples/go/orderbook"
	marketv1 "marketprism/gen/go/market/v1"
)

const (
	// heartbeatsMissed is how many heartbeats may fail to come until the stream counts as dead.
	heartbeatsMissed = 3
	shortestDelay    = 100 * time.Millisecond
	longestDelay     = 10 * time.Second
	maxMessageBytes  = 64 << 20
)

// keeper keeps one book over a connection that may break at any time.
type keeper struct {
	address          string
	exchange, symbol string
	heartbeat        time.Duration

	// onEvent is called after every event that the book took, and with nil when the stream broke.
	onEvent func(*orderbook.Book, *marketv1.MarketEvent)
	// notice gets what a person should know.
	notice func(format string, values ...any)

	book       *orderbook.Book
	reconnects int
}

// keep runs until the context ends, or the server says that asking again cannot help.
func (k *keeper) keep(ctx context.Context) error {
	k.book = orderbook.New(k.exchange, k.symbol)
	delay := shortestDelay
	for {
		heard, err := k.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		k.book.Disconnected()
		k.onEvent(k.book, nil)
		if isPermanent(err) {
			return err
		}
		if heard {
			delay = shortestDelay
		}
		// A random part, so that a thousand clients of one server do not come back at once.
		pause := delay/2 + rand.N(delay/2)
		k.notice("lost %s; connecting again in %d ms", explain(err), pause.Milliseconds())
		delay = min(2*delay, longestDelay)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		k.reconnects++
	}
}

var errSilent = errors.New("silent")

// follow reads one stream to its end, over a connection of its own: one that is cut without a word
// looks alive for minutes, and the next stream must not be put on it. It tells whether anything
// came.
func (k *keeper) follow(ctx context.Context) (heard bool, err error) {
	connection, err := grpc.NewClient(k.address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)))
	if err != nil {
		return false, status.Error(codes.InvalidArgument, err.Error())
	}
	defer connection.Close()

	// Whoever hears nothing for some heartbeats is cut off, whatever TCP believes.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := heartbeatsMissed * k.heartbeat
	silence := time.AfterFunc(limit, func() { cancel(errSilent) })
	defer silence.Stop()

	request := &marketv1.StreamOrderBookRequest{
		Exchange:          k.exchange,
		Symbol:            k.symbol,
		HeartbeatInterval: durationpb.New(k.heartbeat),
	}
	if k.book.Epoch() != 0 {
		request.Resume = &marketv1.ResumePoint{Epoch: k.book.Epoch(), Sequence: k.book.Sequence()}
	}
	stream, err := marketv1.NewMarketDataServiceClient(connection).StreamOrderBook(ctx, request)
	for err == nil {
		var response *marketv1.StreamOrderBookResponse
		if response, err = stream.Recv(); err != nil {
			break
		}
		silence.Reset(limit)
		heard = true
		if err = k.take(response.GetEvents()); err != nil {
			return heard, err
		}
	}
	if errors.Is(context.Cause(ctx), errSilent) {
		return heard, fmt.Errorf("%w: nothing came for %d ms", errSilent, limit.Milliseconds())
	}
	return heard, err
}

func (k *keeper) take(events []*marketv1.MarketEvent) error {
	for _, event := range events {
		k.tell(event)
		if err := k.book.Apply(event); err != nil {
			return err
		}
		k.onEvent(k.book, event)
	}
	return nil
}

// tell says what a person should know of an event.
func (k *keeper) tell(event *marketv1.MarketEvent) {
	switch told := event.GetEvent().(type) {
	case *marketv1.MarketEvent_OrderBookSnapshot:
		snapshot := told.OrderBookSnapshot
		reason := strings.TrimPrefix(snapshot.GetReason().String(), "SNAPSHOT_REASON_")
		k.notice("snapshot %d/%d %s", snapshot.GetEpoch(), snapshot.GetSequence(), reason)
	case *marketv1.MarketEvent_OrderBookStatus:
		book := told.OrderBookStatus
		state := strings.TrimPrefix(book.GetState().String(), "ORDER_BOOK_STATE_")
		reason := strings.TrimPrefix(book.GetReason().String(), "ORDER_BOOK_REASON_")
		k.notice("book %s %s %s", state, reason, book.GetDetail())
	case *marketv1.MarketEvent_StreamStatus:
		stream := told.StreamStatus
		switch stream.GetState() {
		case marketv1.StreamState_STREAM_STATE_HEARTBEAT:
		case marketv1.StreamState_STREAM_STATE_LAGGING:
			k.notice("stream LAGGING: %d events were left out", stream.GetDroppedEvents())
		default:
			state := strings.TrimPrefix(stream.GetState().String(), "STREAM_STATE_")
			k.notice("stream %s %s %s", state, stream.GetReason(), stream.GetMessage())
		}
	}
}

// isPermanent tells whether the same request will be refused again.
func isPermanent(err error) bool {
	switch status.Code(err) {
	case codes.NotFound, codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied,
		codes.Unimplemented:
		return true
	}
	return false
}

func explain(err error) string {
	var outOfStep *orderbook.OutOfStepError
	switch {
	case errors.As(err, &outOfStep):
		return "OUT_OF_STEP: " + err.Error()
	case errors.Is(err, errSilent):
		return "SILENT: " + err.Error()
	case errors.Is(err, io.EOF):
		return "END: the server ended the stream"
	}
	return fmt.Sprintf("%s: %s", status.Code(err), status.Convert(err).Message())
}
