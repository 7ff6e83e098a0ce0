// The same without glue in C, by java.lang.foreign of Java 22 and later, over the same libtsm.so:
//
//     java --enable-native-access=ALL-UNNAMED Ffm.java build/libtsm.so MODEL PROMPT SEED

import java.io.PrintStream;
import java.lang.foreign.AddressLayout;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;

/** A model and one text of it. */
public final class Ffm implements AutoCloseable {
    static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT;
    static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG;
    static final AddressLayout POINTER = ValueLayout.ADDRESS;
    /** tsm_sampling. */
    static final MemoryLayout SAMPLING = MemoryLayout.structLayout(
        MemoryLayout.sequenceLayout(7, ValueLayout.JAVA_DOUBLE).withName("numbers"),
        MemoryLayout.sequenceLayout(256, ValueLayout.JAVA_DOUBLE).withName("logit_bias"),
        LONG.withName("seed"), INT.withName("top_k"), INT.withName("penalty_window"));

    private final Arena arena = Arena.ofConfined(); // frees its memory when closed, and then refuses
    private final SymbolLookup library;
    private final Map<String, MethodHandle> functions = new HashMap<>();
    private final MemorySegment message = arena.allocate(160); // TSM_MESSAGE_BYTES
    private final MemorySegment pointer = arena.allocate(POINTER); // what calls return by address
    private final MemorySegment length = arena.allocate(LONG);
    private final MemorySegment model, text;

    public Ffm(Path library, String path) {
        this.library = SymbolLookup.libraryLookup(library, arena);
        int best = 3; // TSM_SIMD
        check(call("open_file", INT, arena.allocateFrom(path), best, 1, pointer, message));
        model = pointer.get(POINTER, 0);
        check(call("stream_new", INT, model, MemorySegment.NULL, 0, pointer, message));
        text = pointer.get(POINTER, 0);
    }

    /** The settings, of layout SAMPLING; `set` takes them back. */
    public MemorySegment settings() {
        MemorySegment sampling = arena.allocate(SAMPLING);
        call("get_sampling", null, text, sampling);
        return sampling;
    }

    public void set(MemorySegment sampling) {
        check(call("set_sampling", INT, text, sampling, message));
    }

    public void feed(byte[] bytes) {
        try (Arena prompt = Arena.ofConfined()) {
            MemorySegment copy = prompt.allocateFrom(ValueLayout.JAVA_BYTE, bytes);
            check(call("feed", INT, text, copy, (long) bytes.length, message));
        }
    }

    /** Passes on the pieces of text as they come; returns 1 where `bytes` ended it, 2 where a stop did. */
    public int generate(long bytes, List<String> stops, Consumer<String> take) {
        try (Arena all = Arena.ofConfined()) {
            MemorySegment array = all.allocate(POINTER, stops.size());
            for (int i = 0; i < stops.size(); i++)
                array.setAtIndex(POINTER, i, all.allocateFrom(stops.get(i)));
            check(call("generate", INT, text, bytes, array, (long) stops.size(), message));
        }
        while (true) {
            check(call("next", INT, text, pointer, length, message));
            long count = length.get(LONG, 0);
            if (count == 0) return (int) call("finish_reason", INT, text);
            MemorySegment piece = pointer.get(POINTER, 0).reinterpret(count);
            take.accept(new String(piece.toArray(ValueLayout.JAVA_BYTE), StandardCharsets.UTF_8));
        }
    }

    /** How many bytes were read and drawn. */
    public long position() {
        return (long) call("position", LONG, text);
    }

    public float[] logits() {
        check(call("logits", INT, text, pointer, message));
        return pointer.get(POINTER, 0).reinterpret(256 * 4).toArray(ValueLayout.JAVA_FLOAT);
    }

    public byte[] save() {
        try (Arena room = Arena.ofConfined()) {
            MemorySegment state = room.allocate((long) call("save", LONG, text, MemorySegment.NULL, 0L));
            call("save", LONG, text, state, state.byteSize());
            return state.toArray(ValueLayout.JAVA_BYTE);
        }
    }

    @Override
    public void close() {
        if (!arena.scope().isAlive()) return;
        call("stream_free", null, text);
        call("free", null, model);
        arena.close();
    }

    /** Calls tsm_NAME. What is passed has the types of C: int and long, size_t and uint64_t are long. */
    private Object call(String name, MemoryLayout result, Object... arguments) {
        if (!arena.scope().isAlive()) throw new IllegalStateException("closed");
        MemoryLayout[] types = new MemoryLayout[arguments.length];
        for (int i = 0; i < types.length; i++)
            types[i] = arguments[i] instanceof Integer ? INT : arguments[i] instanceof Long ? LONG : POINTER;
        FunctionDescriptor shape =
            result == null ? FunctionDescriptor.ofVoid(types) : FunctionDescriptor.of(result, types);
        MethodHandle function = functions.computeIfAbsent(name, key ->
            Linker.nativeLinker().downcallHandle(library.find("tsm_" + key).orElseThrow(), shape));
        try {
            return function.invokeWithArguments(arguments);
        } catch (RuntimeException | Error error) {
            throw error;
        } catch (Throwable impossible) {
            throw new AssertionError(impossible);
        }
    }

    private void check(Object status) {
        if ((int) status != 0) throw new IllegalArgumentException(message.getString(0));
    }

    public static void main(String[] arguments) throws Exception {
        PrintStream out = new PrintStream(System.out, true, "UTF-8");
        try (Ffm tsm = new Ffm(Path.of(arguments[0]), arguments[1])) {
            MemorySegment settings = tsm.settings();
            long seed = SAMPLING.byteOffset(MemoryLayout.PathElement.groupElement("seed"));
            settings.set(LONG, seed, Long.parseUnsignedLong(arguments[3]));
            tsm.set(settings);
            tsm.feed(arguments[2].getBytes(StandardCharsets.UTF_8));
            tsm.generate(200, List.of(), out::print);
        }
    }
}
