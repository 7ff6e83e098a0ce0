// What tsm.Tsm promises, a check by its name: JniChecks MODEL OTHER_MODEL CHECK

import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.Arrays;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.concurrent.atomic.AtomicInteger;
import tsm.Tsm;

public final class JniChecks {
    static String path, otherPath;

    interface Action {
        void run() throws Exception;
    }

    static void check(boolean holds) {
        if (!holds) throw new AssertionError();
    }

    /** That it throws this kind, with a message that has these words. */
    static void refuses(Class<? extends Exception> kind, String words, Action action) {
        try {
            action.run();
        } catch (Exception found) {
            if (found.getClass() == kind && String.valueOf(found.getMessage()).contains(words)) return;
            throw new AssertionError("wanted " + kind + ": " + words, found);
        }
        throw new AssertionError("wanted " + kind + ": " + words);
    }

    static String all(Iterator<String> pieces) {
        StringBuilder text = new StringBuilder();
        pieces.forEachRemaining(text::append);
        return text.toString();
    }

    static String generated(Tsm.Stream text, long bytes, String... stops) {
        return all(text.generate(bytes, stops));
    }

    static void closing() throws Exception {
        Tsm model = Tsm.open(path);
        Tsm.Stream first = model.stream(), second = model.stream();
        Iterator<String> pieces = first.generate(10);
        check(pieces.hasNext());
        first.close();
        first.close();
        String closed = "the text is closed";
        pieces.next(); // it was there
        refuses(IllegalStateException.class, closed, pieces::hasNext);
        refuses(IllegalStateException.class, closed, pieces::next);
        refuses(IllegalStateException.class, closed, () -> first.feed("x"));
        refuses(IllegalStateException.class, closed, () -> first.generate(1));
        refuses(IllegalStateException.class, closed, first::finishReason);
        refuses(IllegalStateException.class, closed, first::settings);
        refuses(IllegalStateException.class, closed, () -> first.set(new Tsm.Settings()));
        refuses(IllegalStateException.class, closed, first::position);
        refuses(IllegalStateException.class, closed, first::logits);
        refuses(IllegalStateException.class, closed, () -> first.score(new byte[1]));
        refuses(IllegalStateException.class, closed, first::fork);
        refuses(IllegalStateException.class, closed, () -> first.rewind(0));
        refuses(IllegalStateException.class, closed, first::save);
        byte[] state = second.save();
        model.close();
        model.close();
        second.close();
        refuses(IllegalStateException.class, closed, () -> second.feed("x"));
        refuses(IllegalStateException.class, "the model is closed", model::stream);
        refuses(IllegalStateException.class, "the model is closed", model::metadata);
        refuses(IllegalStateException.class, "the model is closed", () -> model.restore(state, 0));
    }

    static void settings() throws Exception {
        try (Tsm model = Tsm.open(path); Tsm.Stream text = model.stream()) {
            check(text.settings().temperature == 0.8 && text.settings().penaltyWindow == 64);
            String wanted = "temperature: wanted a finite number, 0 or more";
            for (double bad : new double[] {-1, Double.NaN, Double.POSITIVE_INFINITY}) {
                Tsm.Settings settings = new Tsm.Settings();
                settings.temperature = bad;
                refuses(Tsm.Failure.class, wanted, () -> text.set(settings));
                refuses(Tsm.Failure.class, wanted, () -> model.stream(settings, 0));
            }
            Tsm.Settings settings = new Tsm.Settings();
            settings.topK = -1;
            refuses(IllegalArgumentException.class, "topK: found -1, wanted 0", () -> text.set(settings));
            settings.topK = 7;
            settings.penaltyWindow = -1;
            refuses(Tsm.Failure.class, "penalty_window: wanted", () -> text.set(settings));
            settings.penaltyWindow = 4096;
            settings.logitBias[255] = 1001;
            refuses(Tsm.Failure.class, "logit_bias: wanted", () -> text.set(settings));
            Arrays.fill(settings.logitBias, Double.NEGATIVE_INFINITY);
            refuses(Tsm.Failure.class, "logit_bias: every byte excluded", () -> text.set(settings));
            settings.logitBias['e'] = 0;
            settings.seed = -1;
            text.set(settings);
            Tsm.Settings found = text.settings();
            check(found.topK == 7 && found.penaltyWindow == 4096 && found.seed == -1);
            check(Arrays.equals(found.logitBias, settings.logitBias));
            check(generated(text, 5).equals("eeeee"));
            refuses(Tsm.Failure.class, "rewind_bytes: wanted at most", () -> model.stream(settings, -1));
        }
    }

    static void files() throws Exception {
        byte[] whole = Files.readAllBytes(Paths.get(path));
        String wanted;
        try (Tsm model = Tsm.open(path); Tsm.Stream text = model.stream()) {
            check(model.metadata().startsWith("{\"tsm_artifact\": 4, ") && model.metadata().endsWith("}"));
            wanted = generated(text, 50);
        }
        try (Tsm model = Tsm.open(whole); Tsm.Stream text = model.stream()) {
            check(generated(text, 50).equals(wanted));
        }
        try (RandomAccessFile file = new RandomAccessFile(path, "r"); FileChannel channel = file.getChannel()) {
            ByteBuffer mapped = channel.map(FileChannel.MapMode.READ_ONLY, 0, channel.size());
            try (Tsm model = Tsm.open(mapped); Tsm.Stream text = model.stream()) {
                check(generated(text, 50).equals(wanted));
            }
        }
        ByteBuffer shifted = ByteBuffer.allocateDirect(whole.length + 5);
        shifted.position(4);
        shifted.put(whole).position(4);
        shifted.limit(4 + whole.length);
        try (Tsm model = Tsm.open(shifted); Tsm.Stream text = model.stream()) {
            check(generated(text, 50).equals(wanted));
        }
        shifted.limit(5 + whole.length).position(5);
        refuses(Tsm.Failure.class, "not at a multiple of 4", () -> Tsm.open(shifted));
        refuses(Tsm.Failure.class, "no direct buffer", () -> Tsm.open(ByteBuffer.wrap(whole)));
        refuses(Tsm.Failure.class, "no TSM header found", () -> Tsm.open(new byte[0]));
        refuses(Tsm.Failure.class, "no TSM header found", () -> Tsm.open(new byte[1000]));
        refuses(Tsm.Failure.class, "wants", () -> Tsm.open(Arrays.copyOf(whole, whole.length - 1)));
        whole[whole.length / 2] ^= 1;
        refuses(Tsm.Failure.class, "CRC-32 differs", () -> Tsm.open(whole));
        refuses(java.io.FileNotFoundException.class, "nowhere", () -> Tsm.open("nowhere"));
        try {
            Tsm.open(whole);
        } catch (Tsm.Failure failure) {
            check(failure.code == -6);
        }
    }

    static void states() throws Exception {
        try (Tsm model = Tsm.open(path); Tsm.Stream text = model.stream(new Tsm.Settings(), 100)) {
            text.feed("Sœur 日本🎭:\n");
            byte[] before = text.save();
            String wanted = generated(text, 40);
            check(text.finishReason().equals("length"));
            byte[] after = text.save();
            text.rewind(40);
            check(Arrays.equals(text.save(), before));
            Tsm.Stream other = text.fork(), third = model.restore(before, 0);
            check(generated(other, 40).equals(wanted) && generated(third, 40).equals(wanted));
            check(Arrays.equals(other.save(), after) && Arrays.equals(third.save(), after));
            check(generated(text, 40).equals(wanted) && Arrays.equals(text.save(), after));
            check(text.position() == third.position() && Arrays.equals(text.logits(), third.logits()));
            refuses(Tsm.Failure.class, "rewind: further back", () -> third.rewind(1));
            refuses(Tsm.Failure.class, "rewind: further back", () -> text.rewind(-1));
            refuses(Tsm.Failure.class, "no TSM state", () -> model.restore(new byte[0], 0));
            after[100] ^= 1;
            refuses(Tsm.Failure.class, "CRC-32 differs", () -> model.restore(after, 0));
            try (Tsm stranger = Tsm.open(otherPath)) {
                refuses(Tsm.Failure.class, "a state of another model", () -> stranger.restore(before, 0));
            }
            float[] nats = model.stream().score("To be, or not to be".getBytes("UTF-8"));
            check(nats.length == 19 && nats[18] > 0 && nats[18] < 5);
        }
    }

    static void iterators() throws Exception {
        try (Tsm model = Tsm.open(path); Tsm.Stream text = model.stream(); Tsm.Stream again = model.stream()) {
            String whole = generated(text, 200);
            Iterator<String> pieces = again.generate(200);
            check(again.position() == 0 && again.finishReason() == null); // none is computed before it is asked for
            String first = pieces.next();
            long position = again.position();
            check(pieces.hasNext() && pieces.hasNext() && again.position() == position + 1);
            check((first + all(pieces)).equals(whole));
            check(!pieces.hasNext() && again.finishReason().equals("length"));
            refuses(NoSuchElementException.class, "", pieces::next);
            Iterator<String> old = again.generate(10);
            Iterator<String> current = again.generate(10);
            check(!old.hasNext() && all(current).length() == 10);
            check(generated(again, 0).isEmpty());
            refuses(IllegalArgumentException.class, "bytes: found -1", () -> again.generate(-1));
            refuses(Tsm.Failure.class, "stops: an empty one", () -> again.generate(1, "a", ""));
            refuses(IllegalArgumentException.class, "found a NUL", () -> again.generate(1, "a\0b"));
            refuses(IllegalArgumentException.class, "half a surrogate", () -> again.generate(1, "\ud83c"));
            refuses(IllegalArgumentException.class, "half a surrogate", () -> again.feed("\ud83c"));
            refuses(NullPointerException.class, "", () -> again.feed((String) null));
            check(!generated(again, 100000, "e", "日本").contains("e") && again.finishReason().equals("stop"));
        }
    }

    /** Texts of two models by turns, and by threads at once: each as if it were alone. */
    static void several() throws Exception {
        String[] paths = {path, otherPath};
        String[] wanted = new String[4];
        for (int i = 0; i < 4; i++)
            try (Tsm model = Tsm.open(paths[i % 2])) {
                wanted[i] = text(model, i);
            }
        try (Tsm one = Tsm.open(path); Tsm two = Tsm.open(otherPath)) {
            StringBuilder[] found = new StringBuilder[4];
            @SuppressWarnings("unchecked")
            Iterator<String>[] pieces = new Iterator[4];
            for (int i = 0; i < 4; i++) {
                Tsm.Settings settings = new Tsm.Settings();
                settings.seed = i;
                pieces[i] = (i % 2 == 0 ? one : two).stream(settings, 0).generate(100);
                found[i] = new StringBuilder();
            }
            for (int left = 4; left > 0; ) {
                left = 0;
                for (int i = 0; i < 4; i++)
                    if (pieces[i].hasNext()) {
                        found[i].append(pieces[i].next());
                        left++;
                    }
            }
            for (int i = 0; i < 4; i++) check(found[i].toString().equals(wanted[i]));

            AtomicInteger right = new AtomicInteger();
            Thread[] threads = new Thread[8];
            for (int i = 0; i < 8; i++) {
                int n = i % 4;
                threads[i] = new Thread(() -> {
                    if (text(n % 2 == 0 ? one : two, n).equals(wanted[n])) right.incrementAndGet();
                });
                threads[i].start();
            }
            for (Thread thread : threads) thread.join();
            check(right.get() == 8);
        }
    }

    static String text(Tsm model, int seed) {
        Tsm.Settings settings = new Tsm.Settings();
        settings.seed = seed;
        try (Tsm.Stream text = model.stream(settings, 0)) {
            return generated(text, 100);
        }
    }

    /** A model that another thread closes ends with an exception there, and no crash. */
    static void closedMeanwhile() throws Exception {
        for (int i = 0; i < 10; i++) {
            Tsm model = Tsm.open(path);
            Iterator<String> pieces = model.stream().generate(Long.MAX_VALUE);
            Thread closer = new Thread(model::close);
            pieces.next();
            closer.start();
            refuses(IllegalStateException.class, "the text is closed", () -> all(pieces));
            closer.join();
        }
    }

    /** Models and texts come and go: their memory, too. */
    static void memory() throws Exception {
        long before = 0;
        for (int i = 0; i < 30; i++) {
            if (i == 10) before = resident();
            try (Tsm model = Tsm.open(path)) {
                for (int j = 0; j < 20; j++) model.stream(new Tsm.Settings(), 1 << 20).feed("x");
            }
            System.gc(); // the file's buffer is Java's
        }
        for (int i = 0; i < 100 && resident() - before >= 60 << 20; i++) { // it collects when it likes
            System.gc();
            Thread.sleep(20);
        }
        check(resident() - before < 60 << 20); // twenty models are 200 MB
    }

    static long resident() throws IOException {
        return Long.parseLong(new String(Files.readAllBytes(Paths.get("/proc/self/statm"))).split(" ")[1]) * 4096;
    }

    public static void main(String[] arguments) throws Exception {
        path = arguments[0];
        otherPath = arguments[1];
        JniChecks.class.getDeclaredMethod(arguments[2]).invoke(null);
        System.out.println("holds");
    }
}
