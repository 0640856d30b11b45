package orderbook_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"marketprism/examples/go/orderbook"
	marketv1 "marketprism/gen/go/market/v1"
)

type vectors struct {
	Exchange string
	Symbol   string
	Vectors  []struct {
		Name  string
		Rule  string
		Steps []step
	}
}

type step struct {
	Event      string
	Disconnect bool
	Expect     struct {
		OutOfStep bool `json:"out_of_step"`
		State     string
		Trusted   bool
		Epoch     string
		Sequence  string
		Bids      [][2]string
		Asks      [][2]string
		Digest    string
	}
}

func TestVectors(t *testing.T) {
	text, err := os.ReadFile("../../vectors/order_book.json")
	if err != nil {
		t.Fatal(err)
	}
	var given vectors
	if err := json.Unmarshal(text, &given); err != nil {
		t.Fatal(err)
	}
	if len(given.Vectors) == 0 {
		t.Fatal("expected vectors, the file has none")
	}
	for _, vector := range given.Vectors {
		t.Run(vector.Name, func(t *testing.T) {
			book := orderbook.New(given.Exchange, given.Symbol)
			for number, step := range vector.Steps {
				outOfStep := take(t, book, step)
				check := func(what string, right bool, expected, got any) {
					if !right {
						t.Fatalf("%s\nstep %d: expected %s %v, got %v",
							vector.Rule, number, what, expected, got)
					}
				}
				expect := step.Expect
				state := strings.TrimPrefix(book.State().String(), "ORDER_BOOK_STATE_")
				epoch := strconv.FormatUint(book.Epoch(), 10)
				sequence := strconv.FormatUint(book.Sequence(), 10)
				check("out of step", outOfStep == expect.OutOfStep, expect.OutOfStep, outOfStep)
				check("state", state == expect.State, expect.State, state)
				check("trusted", book.Trusted() == expect.Trusted, expect.Trusted, book.Trusted())
				check("epoch", epoch == expect.Epoch, expect.Epoch, epoch)
				check("sequence", sequence == expect.Sequence, expect.Sequence, sequence)
				check("bids", same(book.Bids(0), expect.Bids), expect.Bids, book.Bids(0))
				check("asks", same(book.Asks(0), expect.Asks), expect.Asks, book.Asks(0))
				check("digest", book.Digest() == expect.Digest, expect.Digest, book.Digest())
			}
		})
	}
}

func take(t *testing.T, book *orderbook.Book, step step) (outOfStep bool) {
	t.Helper()
	if step.Disconnect {
		book.Disconnected()
		return false
	}
	encoded, err := base64.StdEncoding.DecodeString(step.Event)
	if err != nil {
		t.Fatal(err)
	}
	event := &marketv1.MarketEvent{}
	if err := proto.Unmarshal(encoded, event); err != nil {
		t.Fatal(err)
	}
	err = book.Apply(event)
	var failure *orderbook.OutOfStepError
	if err != nil && !errors.As(err, &failure) {
		t.Fatalf("expected an OutOfStepError, got %v", err)
	}
	return err != nil
}

func same(levels []orderbook.Level, expected [][2]string) bool {
	return slices.EqualFunc(levels, expected, func(level orderbook.Level, pair [2]string) bool {
		return level.Price == pair[0] && level.Quantity == pair[1]
	})
}

func TestCompareOrdersByValue(t *testing.T) {
	rising := []string{"-10", "-2", "-1.5", "-1.25", "0", "0.00000001", "0.1", "0.12", "9.5", "10", "100.01"}
	for i, a := range rising {
		for j, b := range rising {
			got, expected := orderbook.Compare(a, b), i-j
			if got > 0 != (expected > 0) || got < 0 != (expected < 0) {
				t.Errorf("Compare(%s, %s): expected the sign of %d, got %d", a, b, expected, got)
			}
		}
	}
}
