// tests/vectors.json by Ffm: programs.py says what the lines hold. LIBRARY MODEL < lines

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;

public final class FfmVectors {
    static final HexFormat HEX = HexFormat.of();

    static byte[] bytes(float[] values) {
        ByteBuffer out = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
        out.asFloatBuffer().put(values);
        return out.array();
    }

    public static void main(String[] arguments) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
        for (String line; (line = lines.readLine()) != null; ) {
            String[] given = line.split(" ");
            List<String> stops = Arrays.stream(given).skip(3)
                .map(stop -> new String(HEX.parseHex(stop), StandardCharsets.UTF_8)).toList();
            StringBuilder all = new StringBuilder();
            try (Ffm tsm = new Ffm(Path.of(arguments[0]), arguments[1])) {
                MemorySegment settings = tsm.settings();
                settings.copyFrom(MemorySegment.ofArray(HEX.parseHex(given[0])));
                tsm.set(settings);
                tsm.feed(HEX.parseHex(given[2]));
                int finish = tsm.generate(Long.parseLong(given[1]), stops, all::append);
                System.out.println(String.join(" ", HEX.formatHex(all.toString().getBytes(StandardCharsets.UTF_8)),
                    "" + finish, "" + tsm.position(), HEX.formatHex(tsm.save()),
                    HEX.formatHex(bytes(tsm.logits()))));
            }
        }
    }
}
