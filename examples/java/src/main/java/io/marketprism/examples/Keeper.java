package io.marketprism.examples;

import com.google.protobuf.Duration;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.marketprism.market.v1.MarketDataServiceGrpc;
import io.marketprism.market.v1.MarketEvent;
import io.marketprism.market.v1.ResumePoint;
import io.marketprism.market.v1.StreamOrderBookRequest;
import io.marketprism.market.v1.StreamOrderBookResponse;
import io.marketprism.market.v1.StreamState;
import java.util.EnumSet;
import java.util.Iterator;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/** Keeps one book over a connection that may break at any time. */
final class Keeper {
  /** How many heartbeats may fail to come until the stream counts as dead. */
  private static final int HEARTBEATS_MISSED = 3;

  private static final long SHORTEST_DELAY_MS = 100;
  private static final long LONGEST_DELAY_MS = 10_000;
  private static final int MAX_MESSAGE_BYTES = 64 << 20;

  /** Refusals that the same request will meet again. */
  private static final Set<Status.Code> PERMANENT =
      EnumSet.of(
          Status.Code.NOT_FOUND,
          Status.Code.INVALID_ARGUMENT,
          Status.Code.UNAUTHENTICATED,
          Status.Code.PERMISSION_DENIED,
          Status.Code.UNIMPLEMENTED);

  /** Who is told what happens. */
  interface Observer {
    /** After every event that the book took, and with the default instance when the stream broke. */
    void onEvent(OrderBook book, MarketEvent event);

    /** What a person should know. */
    void notice(String text);
  }

  private final String address;
  private final OrderBook book;
  private final long heartbeatMs;
  private final Observer observer;
  private final ScheduledExecutorService watch =
      Executors.newSingleThreadScheduledExecutor(
          task -> {
            Thread thread = new Thread(task, "watch");
            thread.setDaemon(true);
            return thread;
          });
  private final Context.CancellableContext life = Context.ROOT.withCancellation();
  private final CountDownLatch stopped = new CountDownLatch(1);
  private int reconnects;

  /**
   * Keeps a book from a mesh that listens at host:port. A heartbeat is asked for after so long without
   * an event, 100 to 60000 ms.
   */
  Keeper(String address, OrderBook book, long heartbeatMs, Observer observer) {
    this.address = address;
    this.book = book;
    this.heartbeatMs = heartbeatMs;
    this.observer = observer;
  }

  int reconnects() {
    return reconnects;
  }

  /** Ends `keep`; may be called by any thread, and more than once. */
  void stop() {
    stopped.countDown();
    life.cancel(null);
  }

  /**
   * Keeps the book until it is stopped. Throws a StatusRuntimeException when the server says that
   * asking again cannot help.
   */
  void keep() throws InterruptedException {
    long delay = SHORTEST_DELAY_MS;
    while (true) {
      Stream stream = new Stream();
      String why;
      try {
        stream.follow();
        why = "END: the server ended the stream";
      } catch (OutOfStepException failure) {
        why = "OUT_OF_STEP: " + failure.getMessage();
      } catch (StatusRuntimeException failure) {
        if (PERMANENT.contains(failure.getStatus().getCode())) {
          throw failure;
        }
        why = stream.isSilent ? "SILENT: nothing came for " + limitMs() + " ms" : explain(failure);
      }
      if (stopped.getCount() == 0) {
        return;
      }
      book.disconnected();
      observer.onEvent(book, MarketEvent.getDefaultInstance());
      if (stream.isHeard) {
        delay = SHORTEST_DELAY_MS;
      }
      // A random part, so that a thousand clients of one server do not come back at once.
      long pause = ThreadLocalRandom.current().nextLong(delay / 2, delay);
      observer.notice("lost " + why + "; connecting again in " + pause + " ms");
      delay = Math.min(2 * delay, LONGEST_DELAY_MS);
      if (stopped.await(pause, TimeUnit.MILLISECONDS)) {
        return;
      }
      reconnects++;
    }
  }

  static String explain(StatusRuntimeException failure) {
    Status status = failure.getStatus();
    return status.getCode() + ": " + status.getDescription();
  }

  private long limitMs() {
    return HEARTBEATS_MISSED * heartbeatMs;
  }

  /**
   * One stream, over a connection of its own: one that is cut without a word looks alive for minutes,
   * and the next stream must not be put on it.
   */
  private final class Stream {
    volatile boolean isSilent;
    boolean isHeard;
    private final Context.CancellableContext context = life.withCancellation();
    private ScheduledFuture<?> alarm;

    void follow() throws OutOfStepException {
      ManagedChannel channel =
          NettyChannelBuilder.forTarget(address)
              .usePlaintext()
              .maxInboundMessageSize(MAX_MESSAGE_BYTES)
              .build();
      try {
        setAlarm();
        for (Iterator<StreamOrderBookResponse> responses = open(channel); responses.hasNext(); ) {
          take(responses.next());
        }
      } finally {
        alarm.cancel(false);
        context.cancel(null);
        channel.shutdownNow();
      }
    }

    private Iterator<StreamOrderBookResponse> open(ManagedChannel channel) {
      var request =
          StreamOrderBookRequest.newBuilder()
              .setExchange(book.exchange())
              .setSymbol(book.symbol())
              .setHeartbeatInterval(
                  Duration.newBuilder()
                      .setSeconds(heartbeatMs / 1000)
                      .setNanos((int) (heartbeatMs % 1000) * 1_000_000));
      if (book.epoch() != 0) {
        request.setResume(
            ResumePoint.newBuilder().setEpoch(book.epoch()).setSequence(book.sequence()));
      }
      Context before = context.attach();
      try {
        return MarketDataServiceGrpc.newBlockingStub(channel).streamOrderBook(request.build());
      } finally {
        context.detach(before);
      }
    }

    private void take(StreamOrderBookResponse response) throws OutOfStepException {
      alarm.cancel(false);
      setAlarm();
      isHeard = true;
      for (MarketEvent event : response.getEventsList()) {
        tell(event);
        book.apply(event);
        observer.onEvent(book, event);
      }
    }

    /** Whoever hears nothing for some heartbeats is cut off, whatever TCP believes. */
    private void setAlarm() {
      alarm =
          watch.schedule(
              () -> {
                isSilent = true;
                context.cancel(null);
              },
              limitMs(),
              TimeUnit.MILLISECONDS);
    }
  }

  /** Says what a person should know of an event. */
  private void tell(MarketEvent event) {
    switch (event.getEventCase()) {
      case ORDER_BOOK_SNAPSHOT -> {
        var told = event.getOrderBookSnapshot();
        observer.notice(
            "snapshot %s/%s %s"
                .formatted(
                    Long.toUnsignedString(told.getEpoch()),
                    Long.toUnsignedString(told.getSequence()),
                    bare(told.getReason(), "SNAPSHOT_REASON_")));
      }
      case ORDER_BOOK_STATUS -> {
        var told = event.getOrderBookStatus();
        observer.notice(
            "book %s %s %s"
                .formatted(
                    bare(told.getState(), "ORDER_BOOK_STATE_"),
                    bare(told.getReason(), "ORDER_BOOK_REASON_"),
                    told.getDetail()));
      }
      case STREAM_STATUS -> {
        var told = event.getStreamStatus();
        if (told.getState() == StreamState.STREAM_STATE_LAGGING) {
          observer.notice(
              "stream LAGGING: %d events were left out".formatted(told.getDroppedEvents()));
        } else if (told.getState() != StreamState.STREAM_STATE_HEARTBEAT) {
          String state = bare(told.getState(), "STREAM_STATE_");
          observer.notice(
              "stream %s %s %s".formatted(state, told.getReason(), told.getMessage()));
        }
      }
      default -> {}
    }
  }

  private static String bare(Enum<?> value, String prefix) {
    return value.name().substring(value.name().startsWith(prefix) ? prefix.length() : 0);
  }
}
