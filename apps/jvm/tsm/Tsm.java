/* A model and its texts, by the C engine: on Android and on every JVM from Java 8.
 *
 *     try (Tsm model = Tsm.open("shakespeare-int8.tflite"); Tsm.Stream text = model.stream()) {
 *         text.feed("ROMEO:\n");
 *         text.generate(500, "\n\n").forEachRemaining(System.out::print);
 *     }
 *
 * tsm_jni.c is its other half: `make -C apps/jvm` builds both. Any thread may call; the texts of one model
 * take turns. What is closed throws IllegalStateException, what C refuses throws Tsm.Failure.
 */
package tsm;

import java.io.FileInputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.CharBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Set;

public final class Tsm implements AutoCloseable {
    static {
        System.loadLibrary("tsm");
    }

    /** What the engine says in one line, and the code that tsm.h has for it. */
    public static final class Failure extends RuntimeException {
        public final int code;

        Failure(int code, String message) {
            super(message);
            this.code = code;
        }
    }

    /** How bytes are drawn: docs/generation.md. A new one has the defaults. */
    public static final class Settings {
        public double temperature, typicalP, topP, minP;
        public double repetitionPenalty, presencePenalty, frequencyPenalty;
        public final double[] logitBias = new double[256]; // by byte; negative infinity: never
        public long seed; // of 64 bits, without a sign
        public int topK, penaltyWindow;

        public Settings() {
            this(getSettings(0));
        }

        /** From the bytes of a tsm_sampling. */
        Settings(byte[] bytes) {
            ByteBuffer in = ByteBuffer.wrap(bytes).order(ByteOrder.nativeOrder());
            temperature = in.getDouble();
            typicalP = in.getDouble();
            topP = in.getDouble();
            minP = in.getDouble();
            repetitionPenalty = in.getDouble();
            presencePenalty = in.getDouble();
            frequencyPenalty = in.getDouble();
            for (int i = 0; i < 256; i++) logitBias[i] = in.getDouble();
            seed = in.getLong();
            topK = in.getInt();
            penaltyWindow = in.getInt();
        }

        byte[] bytes() {
            if (topK < 0) throw new IllegalArgumentException("topK: found " + topK + ", wanted 0 or more");
            ByteBuffer out = ByteBuffer.allocate(263 * 8 + 8 + 4 + 4).order(ByteOrder.nativeOrder());
            out.putDouble(temperature).putDouble(typicalP).putDouble(topP).putDouble(minP);
            out.putDouble(repetitionPenalty).putDouble(presencePenalty).putDouble(frequencyPenalty);
            for (double value : logitBias) out.putDouble(value);
            return out.putLong(seed).putInt(topK).putInt(penaltyWindow).array();
        }
    }

    private final ByteBuffer file; // which the model computes from
    private final Set<Stream> streams = new HashSet<>();
    private long model;

    private Tsm(ByteBuffer file) {
        this.file = file.slice();
        model = open(this.file, 1);
    }

    /** A .tflite or .onnx in int8 or int4, read into memory. */
    public static Tsm open(String path) throws IOException {
        try (FileInputStream stream = new FileInputStream(path); FileChannel channel = stream.getChannel()) {
            ByteBuffer file = ByteBuffer.allocateDirect((int) Math.min(channel.size(), Integer.MAX_VALUE));
            while (file.hasRemaining() && channel.read(file) >= 0) continue;
            file.flip();
            return new Tsm(file);
        }
    }

    public static Tsm open(byte[] file) {
        ByteBuffer copy = ByteBuffer.allocateDirect(file.length);
        copy.put(file).flip();
        return new Tsm(copy);
    }

    /** The rest of a direct buffer, a mapped file say, which is not copied and must not change. */
    public static Tsm open(ByteBuffer direct) {
        return new Tsm(direct);
    }

    /** What the artifact says of itself, in JSON. */
    public synchronized String metadata() {
        return text(metadata(handle()));
    }

    public Stream stream() {
        return stream(new Settings(), 0);
    }

    /** A fresh text, which can be rewound by `rewindBytes`. */
    public synchronized Stream stream(Settings settings, int rewindBytes) {
        return new Stream(newStream(handle(), settings.bytes(), rewindBytes));
    }

    /** A text that goes on from what Stream.save, Python or another program of ours has saved. */
    public synchronized Stream restore(byte[] state, int rewindBytes) {
        return new Stream(restore(handle(), state, rewindBytes));
    }

    /** Closes its texts, too. */
    @Override
    public synchronized void close() {
        for (Stream stream : new ArrayList<>(streams)) stream.close();
        free(model);
        model = 0;
    }

    private long handle() {
        if (model == 0) throw new IllegalStateException("the model is closed");
        return model;
    }

    /** What the model remembers of one text, its settings, and the number of the next random draw. */
    public final class Stream implements AutoCloseable {
        private long stream;
        private int generation;

        private Stream(long stream) {
            this.stream = stream;
            streams.add(this);
        }

        public void feed(String text) {
            feed(utf8(text));
        }

        public void feed(byte[] bytes) {
            synchronized (Tsm.this) {
                Tsm.feed(handle(), bytes);
            }
        }

        /** The next pieces of text, each computed when it is asked for; `bytes` at most, up to a stop. */
        public Iterator<String> generate(long bytes, String... stops) {
            if (bytes < 0) throw new IllegalArgumentException("bytes: found " + bytes + ", wanted 0 or more");
            List<byte[]> all = new ArrayList<>();
            for (String stop : stops) {
                if (stop.indexOf(0) >= 0) throw new IllegalArgumentException("stops: found a NUL in one");
                all.add(utf8(stop));
            }
            synchronized (Tsm.this) {
                Tsm.generate(handle(), bytes, all.toArray(new byte[0][]));
                return new Pieces(++generation);
            }
        }

        private final class Pieces implements Iterator<String> {
            private final int mine;
            private String piece; // the next one, if it is known; empty: there is none

            Pieces(int mine) {
                this.mine = mine;
            }

            @Override
            public boolean hasNext() {
                synchronized (Tsm.this) {
                    if (piece == null) piece = mine == generation ? text(Tsm.next(handle())) : "";
                    return !piece.isEmpty();
                }
            }

            @Override
            public String next() {
                synchronized (Tsm.this) {
                    if (!hasNext()) throw new NoSuchElementException();
                    String found = piece;
                    piece = null;
                    return found;
                }
            }
        }

        /** How the generation has ended: "length" or "stop"; null while it has not. */
        public String finishReason() {
            synchronized (Tsm.this) {
                return new String[] {null, "length", "stop"}[Tsm.finish(handle())];
            }
        }

        public Settings settings() {
            synchronized (Tsm.this) {
                return new Settings(getSettings(handle()));
            }
        }

        public void set(Settings settings) {
            synchronized (Tsm.this) {
                setSettings(handle(), settings.bytes());
            }
        }

        /** How many bytes were read and drawn. */
        public long position() {
            synchronized (Tsm.this) {
                return Tsm.position(handle());
            }
        }

        /** 256 of them, of the next byte, as the model has them. */
        public float[] logits() {
            synchronized (Tsm.this) {
                return Tsm.logits(handle());
            }
        }

        /** Reads, and says of each byte how unlikely it was: -log p, in nats. */
        public float[] score(byte[] bytes) {
            synchronized (Tsm.this) {
                return Tsm.score(handle(), bytes);
            }
        }

        /** Another text that goes on from here by itself. */
        public Stream fork() {
            synchronized (Tsm.this) {
                return new Stream(Tsm.fork(handle()));
            }
        }

        /** Forgets the last bytes, as if they had never been. */
        public void rewind(long bytes) {
            synchronized (Tsm.this) {
                Tsm.rewind(handle(), bytes);
            }
        }

        /** All that goes on from here: the same file as Python's --save-state. */
        public byte[] save() {
            synchronized (Tsm.this) {
                return Tsm.save(handle());
            }
        }

        @Override
        public void close() {
            synchronized (Tsm.this) {
                freeStream(stream);
                stream = 0;
                streams.remove(this);
            }
        }

        private long handle() {
            if (stream == 0) throw new IllegalStateException("the text is closed");
            return stream;
        }
    }

    private static byte[] utf8(String text) {
        try {
            ByteBuffer encoded = StandardCharsets.UTF_8.newEncoder().encode(CharBuffer.wrap(text));
            byte[] bytes = new byte[encoded.remaining()];
            encoded.get(bytes);
            return bytes;
        } catch (CharacterCodingException half) {
            throw new IllegalArgumentException("text: found half a surrogate pair, wanted whole characters");
        }
    }

    private static String text(byte[] utf8) {
        return new String(utf8, StandardCharsets.UTF_8);
    }

    private static native long open(ByteBuffer file, int threads);

    private static native void free(long model);

    private static native byte[] metadata(long model);

    private static native long newStream(long model, byte[] settings, int rewindBytes);

    private static native long restore(long model, byte[] state, int rewindBytes);

    private static native long fork(long stream);

    private static native void freeStream(long stream);

    private static native byte[] getSettings(long stream);

    private static native void setSettings(long stream, byte[] settings);

    private static native long position(long stream);

    private static native void feed(long stream, byte[] bytes);

    private static native float[] logits(long stream);

    private static native float[] score(long stream, byte[] bytes);

    private static native void generate(long stream, long bytes, byte[][] stops);

    private static native byte[] next(long stream);

    private static native int finish(long stream);

    private static native void rewind(long stream, long bytes);

    private static native byte[] save(long stream);
}
