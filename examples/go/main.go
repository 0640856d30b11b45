// Keepbook keeps one order book over gRPC, and shows its top whenever it may be believed.
//
//	go run . -exchange binance -symbol BTC-USDT -address 127.0.0.1:8080
//
// What happens to the book and the connection is told on stderr.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"marketprism/examples/go/orderbook"
	marketv1 "marketprism/gen/go/market/v1"
)

const (
	shownAtMostEvery = 100 * time.Millisecond
	jsonDepth        = 50
)

func main() {
	address := flag.String("address", "127.0.0.1:8080", "where the mesh listens, host:port")
	exchange := flag.String("exchange", "binance", "venue id")
	symbol := flag.String("symbol", "BTC-USDT", "canonical symbol")
	seconds := flag.Float64("seconds", 0, "end after so long; 0: at Ctrl-C")
	heartbeat := flag.Int("heartbeat-ms", 2000, "ask for a heartbeat after so long without an event")
	digests := flag.Bool("digests", false, "print a fingerprint of the book after every change")
	asJSON := flag.Bool("json", false, "print the book as a line of JSON at the end")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*seconds*float64(time.Second)))
		defer cancel()
	}

	keeper := &keeper{
		address:   *address,
		exchange:  *exchange,
		symbol:    *symbol,
		heartbeat: time.Duration(*heartbeat) * time.Millisecond,
		notice:    notice,
	}
	var shown time.Time
	trusted := false
	keeper.onEvent = func(book *orderbook.Book, event *marketv1.MarketEvent) {
		changed := event.GetOrderBookSnapshot() != nil || event.GetOrderBookUpdate() != nil
		if changed && *digests {
			fmt.Println("digest", book.Epoch(), book.Sequence(), book.Digest())
		}
		became := book.Trusted() && !trusted
		trusted = book.Trusted()
		if trusted && (became || changed && time.Since(shown) >= shownAtMostEvery) {
			shown = time.Now()
			book.WriteTop(os.Stdout)
		}
	}
	err := keeper.keep(ctx)
	if *asJSON {
		printJSON(keeper)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, explain(err))
		os.Exit(1)
	}
}

func notice(format string, values ...any) {
	fmt.Fprintln(os.Stderr, "--", strings.TrimSpace(fmt.Sprintf(format, values...)))
}

// printJSON prints the book as it stood at the end, and whether it was to be believed then.
func printJSON(keeper *keeper) {
	pairs := func(levels []orderbook.Level) [][2]string {
		pairs := make([][2]string, len(levels))
		for number, level := range levels {
			pairs[number] = [2]string{level.Price, level.Quantity}
		}
		return pairs
	}
	book := keeper.book
	line, err := json.Marshal(map[string]any{
		"exchange":   keeper.exchange,
		"symbol":     keeper.symbol,
		"trusted":    book.Trusted(),
		"epoch":      strconv.FormatUint(book.Epoch(), 10),
		"sequence":   strconv.FormatUint(book.Sequence(), 10),
		"bids":       pairs(book.Bids(jsonDepth)),
		"asks":       pairs(book.Asks(jsonDepth)),
		"reconnects": keeper.reconnects,
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}
