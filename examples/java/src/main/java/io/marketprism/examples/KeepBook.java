package io.marketprism.examples;

import com.google.gson.Gson;
import io.grpc.StatusRuntimeException;
import io.marketprism.market.v1.MarketEvent;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/**
 * Keeps one order book over gRPC, and shows its top whenever it may be believed.
 *
 * <pre>java -jar target/keepbook.jar --exchange binance --symbol BTC-USDT --address 127.0.0.1:8080
 * </pre>
 *
 * What happens to the book and the connection is told on stderr.
 */
final class KeepBook {
  private static final long SHOWN_AT_MOST_EVERY_NANOS = TimeUnit.MILLISECONDS.toNanos(100);
  private static final int JSON_DEPTH = 50;
  private static final String USAGE =
      """
      Keeps one order book over gRPC, and shows its top whenever it may be believed.
        --address HOST:PORT   where the mesh listens (127.0.0.1:8080)
        --exchange ID         venue id (binance)
        --symbol SYMBOL       canonical symbol (BTC-USDT)
        --seconds N           end after so long; 0: at Ctrl-C (0)
        --heartbeat-ms N      ask for a heartbeat after so long without an event (2000)
        --digests             print a fingerprint of the book after every change
        --json                print the book as a line of JSON at the end""";

  public static void main(String[] arguments) throws InterruptedException {
    Map<String, String> options;
    double seconds;
    long heartbeatMs;
    try {
      options = parse(arguments);
      seconds = Double.parseDouble(options.get("seconds"));
      heartbeatMs = Long.parseLong(options.get("heartbeat-ms"));
    } catch (IllegalArgumentException wrong) {
      System.err.println(wrong.getMessage() + "\n" + USAGE);
      System.exit(2);
      return;
    }
    var book = new OrderBook(options.get("exchange"), options.get("symbol"));
    var terminal = new Terminal(options.containsKey("digests"));
    var keeper = new Keeper(options.get("address"), book, heartbeatMs, terminal);

    // Ctrl-C ends the virtual machine: it has to wait until the last line is out.
    Thread main = Thread.currentThread();
    Thread hook =
        new Thread(
            () -> {
              keeper.stop();
              try {
                main.join();
              } catch (InterruptedException alreadyLate) {
                Thread.currentThread().interrupt();
              }
            });
    Runtime.getRuntime().addShutdownHook(hook);
    if (seconds > 0) {
      Thread timer = new Thread(() -> stopAfter(seconds, keeper), "seconds");
      timer.setDaemon(true);
      timer.start();
    }
    boolean refused = false;
    try {
      keeper.keep();
    } catch (StatusRuntimeException failure) {
      System.err.println(Keeper.explain(failure));
      refused = true;
    }
    if (options.containsKey("json")) {
      System.out.println(json(book, keeper.reconnects()));
    }
    if (refused) {
      Runtime.getRuntime().removeShutdownHook(hook);
      System.exit(1);
    }
  }

  private static Map<String, String> parse(String[] arguments) {
    Map<String, String> options =
        new HashMap<>(
            Map.of(
                "address", "127.0.0.1:8080",
                "exchange", "binance",
                "symbol", "BTC-USDT",
                "seconds", "0",
                "heartbeat-ms", "2000"));
    for (int index = 0; index < arguments.length; index++) {
      String name = arguments[index].replaceFirst("^--", "");
      if (name.equals("digests") || name.equals("json")) {
        options.put(name, "");
      } else if (options.containsKey(name) && index + 1 < arguments.length) {
        options.put(name, arguments[++index]);
      } else {
        throw new IllegalArgumentException("expected an option, got " + arguments[index]);
      }
    }
    return options;
  }

  private static void stopAfter(double seconds, Keeper keeper) {
    try {
      TimeUnit.MILLISECONDS.sleep((long) (seconds * 1000));
    } catch (InterruptedException early) {
      Thread.currentThread().interrupt();
    }
    keeper.stop();
  }

  private static String json(OrderBook book, int reconnects) {
    Map<String, Object> line = new LinkedHashMap<>();
    line.put("exchange", book.exchange());
    line.put("symbol", book.symbol());
    line.put("trusted", book.isTrusted());
    line.put("epoch", Long.toUnsignedString(book.epoch()));
    line.put("sequence", Long.toUnsignedString(book.sequence()));
    line.put("bids", pairs(book.bids(JSON_DEPTH)));
    line.put("asks", pairs(book.asks(JSON_DEPTH)));
    line.put("reconnects", reconnects);
    return new Gson().toJson(line);
  }

  private static List<List<String>> pairs(List<Level> levels) {
    return levels.stream().map(level -> List.of(level.price(), level.quantity())).toList();
  }

  /** Prints what is worth a look. */
  private static final class Terminal implements Keeper.Observer {
    private final boolean digests;
    private long shown = System.nanoTime() - SHOWN_AT_MOST_EVERY_NANOS;
    private boolean wasTrusted;

    Terminal(boolean digests) {
      this.digests = digests;
    }

    @Override
    public void onEvent(OrderBook book, MarketEvent event) {
      boolean changed = event.hasOrderBookSnapshot() || event.hasOrderBookUpdate();
      if (changed && digests) {
        String epoch = Long.toUnsignedString(book.epoch());
        String sequence = Long.toUnsignedString(book.sequence());
        System.out.println("digest " + epoch + " " + sequence + " " + book.digest());
      }
      boolean became = book.isTrusted() && !wasTrusted;
      wasTrusted = book.isTrusted();
      long now = System.nanoTime();
      boolean isDue = now - shown >= SHOWN_AT_MOST_EVERY_NANOS;
      if (became || (book.isTrusted() && changed && isDue)) {
        shown = now;
        System.out.println(book.top());
      }
    }

    @Override
    public void notice(String text) {
      System.err.println("-- " + text.strip());
    }
  }

  private KeepBook() {}
}
