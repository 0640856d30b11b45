package io.marketprism.examples;

import io.marketprism.market.v1.MarketEvent;
import io.marketprism.market.v1.OrderBookSnapshot;
import io.marketprism.market.v1.OrderBookState;
import io.marketprism.market.v1.OrderBookUpdate;
import io.marketprism.market.v1.PriceLevel;
import io.marketprism.market.v1.StreamStatus;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Comparator;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.NavigableMap;
import java.util.Set;
import java.util.TreeMap;

/**
 * Keeps the book of one instrument from a stream of market events.
 *
 * <p>It does no I/O: it takes the events of StreamOrderBook, StreamMarketData or Subscribe one after
 * the other and says what may be believed. Two rules keep a book right: a snapshot replaces
 * everything; an update is right only if it has the same epoch and the next sequence.
 *
 * <p>Epoch and sequence are unsigned, as protobuf's uint64 is.
 */
final class OrderBook {
  private static final int DIGEST_DEPTH = 50;

  private final String exchange;
  private final String symbol;
  private long epoch;
  private long sequence;
  private Side bids = new Side(Comparator.reverseOrder(), "");
  private Side asks = new Side(Comparator.naturalOrder(), "");
  private OrderBookState state = OrderBookState.ORDER_BOOK_STATE_UNSPECIFIED;
  private boolean streamOpen;
  private final Set<String> interrupted = new HashSet<>();

  /** Makes an empty book, which takes the events of this instrument and ignores all others. */
  OrderBook(String exchange, String symbol) {
    this.exchange = exchange;
    this.symbol = symbol;
  }

  String exchange() {
    return exchange;
  }

  String symbol() {
    return symbol;
  }

  /** Epoch of the book, 0 while there is none. */
  long epoch() {
    return epoch;
  }

  /** Number of the last update contained. */
  long sequence() {
    return sequence;
  }

  /** What the server told last; unspecified while it has told nothing in this stream. */
  OrderBookState state() {
    return state;
  }

  /**
   * Whether the book equals the venue's: there is one, the server says that it is in step, and the
   * stream that would tell otherwise is open.
   */
  boolean isTrusted() {
    boolean isHeard = streamOpen && interrupted.isEmpty();
    return epoch != 0 && isHeard && state == OrderBookState.ORDER_BOOK_STATE_SYNCED;
  }

  /**
   * The best bids, highest first, at most so many. Beyond the horizon that the venue publishes a book
   * is unknown, so nothing of that is given.
   */
  List<Level> bids(int depth) {
    return bids.best(depth);
  }

  /** The best asks, lowest first. */
  List<Level> asks(int depth) {
    return asks.best(depth);
  }

  /** The fingerprint of the best 50 levels a side by which two books are compared. */
  String digest() {
    StringBuilder text = new StringBuilder();
    for (Level level : bids(DIGEST_DEPTH)) {
      text.append("bid %s %s\n".formatted(level.price(), level.quantity()));
    }
    for (Level level : asks(DIGEST_DEPTH)) {
      text.append("ask %s %s\n".formatted(level.price(), level.quantity()));
    }
    try {
      MessageDigest sha256 = MessageDigest.getInstance("SHA-256");
      return HexFormat.of()
          .formatHex(sha256.digest(text.toString().getBytes(StandardCharsets.UTF_8)));
    } catch (NoSuchAlgorithmException impossible) {
      throw new AssertionError(impossible);
    }
  }

  /** Where the book stands, quantity and price of the best bid, price and quantity of the best ask. */
  String top() {
    Level nothing = new Level("-", "-");
    Level bid = bids(1).stream().findFirst().orElse(nothing);
    Level ask = asks(1).stream().findFirst().orElse(nothing);
    return "%s %s %s/%s  %s @ %s | %s @ %s"
        .formatted(
            exchange,
            symbol,
            Long.toUnsignedString(epoch),
            Long.toUnsignedString(sequence),
            bid.quantity(),
            bid.price(),
            ask.price(),
            ask.quantity());
  }

  /**
   * The stream is over. The levels stay, because a new stream may go on where they stand; nothing is
   * known of the venue until it does.
   */
  void disconnected() {
    streamOpen = false;
    interrupted.clear();
    state = OrderBookState.ORDER_BOOK_STATE_UNSPECIFIED;
  }

  /**
   * Takes the next event. Fails when an update does not continue the book; a new stream is needed
   * then, without a resume point.
   */
  void apply(MarketEvent event) throws OutOfStepException {
    switch (event.getEventCase()) {
      case ORDER_BOOK_SNAPSHOT -> {
        var snapshot = event.getOrderBookSnapshot();
        if (isMine(snapshot.getExchange(), snapshot.getSymbol())) {
          replace(snapshot);
        }
      }
      case ORDER_BOOK_UPDATE -> {
        var update = event.getOrderBookUpdate();
        if (isMine(update.getExchange(), update.getSymbol())) {
          update(update);
        }
      }
      case ORDER_BOOK_STATUS -> {
        var status = event.getOrderBookStatus();
        if (isMine(status.getExchange(), status.getSymbol())) {
          state = status.getState();
        }
      }
      case STREAM_STATUS -> {
        var status = event.getStreamStatus();
        if (isOfMe(status)) {
          follow(status);
        }
      }
      default -> {}
    }
  }

  private boolean isMine(String exchange, String symbol) {
    return exchange.equals(this.exchange) && symbol.equals(this.symbol);
  }

  /** Whether a status speaks of the book: of the whole stream, of its venue or of its instrument. */
  private boolean isOfMe(StreamStatus status) {
    return List.of("", exchange).contains(status.getExchange())
        && List.of("", symbol).contains(status.getSymbol());
  }

  private void follow(StreamStatus status) {
    // What is interrupted stays so until the same scope is open again.
    String scope = status.getExchange() + "/" + status.getSymbol();
    switch (status.getState()) {
      case STREAM_STATE_OPEN -> {
        streamOpen = true;
        interrupted.remove(scope);
      }
      case STREAM_STATE_INTERRUPTED -> interrupted.add(scope);
      case STREAM_STATE_ENDED -> streamOpen = false;
      default -> {}
    }
  }

  private void replace(OrderBookSnapshot snapshot) {
    epoch = snapshot.getEpoch();
    sequence = snapshot.getSequence();
    bids = new Side(Comparator.reverseOrder(), snapshot.getBidHorizon());
    asks = new Side(Comparator.naturalOrder(), snapshot.getAskHorizon());
    bids.apply(snapshot.getBidsList());
    asks.apply(snapshot.getAsksList());
  }

  private void update(OrderBookUpdate update) throws OutOfStepException {
    // A merged update stands for all from its first one on.
    long first = update.getFirstSequence() != 0 ? update.getFirstSequence() : update.getSequence();
    if (epoch == 0 || update.getEpoch() != epoch || first != sequence + 1) {
      var failure =
          new OutOfStepException(epoch, sequence, update.getEpoch(), update.getSequence());
      replace(OrderBookSnapshot.getDefaultInstance());
      disconnected();
      throw failure;
    }
    sequence = update.getSequence();
    bids.apply(update.getBidsList());
    asks.apply(update.getAsksList());
  }

  /** One side of a book, best level first, ordered by the value of the price. */
  private static final class Side {
    private final NavigableMap<BigDecimal, Level> levels;
    private final String horizon;

    Side(Comparator<BigDecimal> order, String horizon) {
      this.levels = new TreeMap<>(order);
      this.horizon = horizon;
    }

    void apply(List<PriceLevel> changes) {
      for (PriceLevel change : changes) {
        BigDecimal price = new BigDecimal(change.getPrice());
        if (change.getQuantity().equals("0")) {
          levels.remove(price);
        } else {
          levels.put(price, new Level(change.getPrice(), change.getQuantity()));
        }
      }
    }

    List<Level> best(int depth) {
      var known = horizon.isEmpty() ? levels : levels.headMap(new BigDecimal(horizon), true);
      return known.values().stream().limit(depth).toList();
    }
  }
}
