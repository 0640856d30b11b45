package io.marketprism.examples;

/**
 * An update does not continue the book. The book is empty then: what was held must not be used, and
 * only a snapshot gives a book again.
 */
final class OutOfStepException extends Exception {
  private static final long serialVersionUID = 1L;

  OutOfStepException(long epoch, long sequence, long gotEpoch, long gotSequence) {
    super(
        "the book stands at %s/%s, and update %s/%s does not continue it"
            .formatted(
                Long.toUnsignedString(epoch),
                Long.toUnsignedString(sequence),
                Long.toUnsignedString(gotEpoch),
                Long.toUnsignedString(gotSequence)));
  }
}
