package io.marketprism.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;

import com.google.gson.Gson;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.protobuf.InvalidProtocolBufferException;
import io.marketprism.market.v1.MarketEvent;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import java.util.List;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** The book passes the vectors that the book of every language passes. */
final class OrderBookTest {
  private static final Path VECTORS = Path.of("..", "vectors", "order_book.json");

  @TestFactory
  Stream<DynamicTest> vectors() throws IOException {
    var given = new Gson().fromJson(Files.readString(VECTORS), JsonObject.class);
    String exchange = given.get("exchange").getAsString();
    String symbol = given.get("symbol").getAsString();
    return StreamSupport.stream(given.getAsJsonArray("vectors").spliterator(), false)
        .map(JsonElement::getAsJsonObject)
        .map(
            vector ->
                DynamicTest.dynamicTest(
                    vector.get("name").getAsString(),
                    () -> walk(new OrderBook(exchange, symbol), vector)));
  }

  private static void walk(OrderBook book, JsonObject vector) throws IOException {
    int number = 0;
    for (JsonElement element : vector.getAsJsonArray("steps")) {
      JsonObject step = element.getAsJsonObject();
      JsonObject held = new JsonObject();
      held.addProperty("out_of_step", take(book, step));
      held.addProperty("state", book.state().name().replace("ORDER_BOOK_STATE_", ""));
      held.addProperty("trusted", book.isTrusted());
      held.addProperty("epoch", Long.toUnsignedString(book.epoch()));
      held.addProperty("sequence", Long.toUnsignedString(book.sequence()));
      held.add("bids", pairs(book.bids(Integer.MAX_VALUE)));
      held.add("asks", pairs(book.asks(Integer.MAX_VALUE)));
      held.addProperty("digest", book.digest());
      assertEquals(
          step.get("expect"), held, vector.get("rule").getAsString() + " Step " + number++);
    }
  }

  /** Gives one step to the book, and tells whether it fell out of step. */
  private static boolean take(OrderBook book, JsonObject step)
      throws InvalidProtocolBufferException {
    if (!step.has("event")) {
      book.disconnected();
      return false;
    }
    byte[] event = Base64.getDecoder().decode(step.get("event").getAsString());
    try {
      book.apply(MarketEvent.parseFrom(event));
      return false;
    } catch (OutOfStepException expected) {
      return true;
    }
  }

  private static JsonElement pairs(List<Level> levels) {
    return new Gson()
        .toJsonTree(levels.stream().map(level -> List.of(level.price(), level.quantity())).toList());
  }
}
