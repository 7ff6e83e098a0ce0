// tests/vectors.json by tsm.Tsm: programs.py says what the lines hold. MODEL < lines

package tsm; // for the bytes of settings

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Iterator;

public final class JniVectors {
    static byte[] unhex(String digits) {
        byte[] bytes = new byte[digits.length() / 2];
        for (int i = 0; i < bytes.length; i++)
            bytes[i] = (byte) Integer.parseInt(digits.substring(2 * i, 2 * i + 2), 16);
        return bytes;
    }

    static String hex(byte[] bytes) {
        StringBuilder digits = new StringBuilder();
        for (byte value : bytes) digits.append(String.format("%02x", value));
        return digits.toString();
    }

    static String text(byte[] bytes) {
        return new String(bytes, StandardCharsets.UTF_8);
    }

    static byte[] bytes(float[] values) {
        ByteBuffer out = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
        for (float value : values) out.putFloat(value);
        return out.array();
    }

    public static void main(String[] arguments) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
        try (Tsm model = Tsm.open(arguments[0])) {
            for (String line; (line = lines.readLine()) != null; ) {
                String[] given = line.split(" ");
                String[] stops = Arrays.stream(given).skip(3).map(s -> text(unhex(s))).toArray(String[]::new);
                try (Tsm.Stream stream = model.stream(new Tsm.Settings(unhex(given[0])), 0)) {
                    stream.feed(unhex(given[2]));
                    StringBuilder all = new StringBuilder();
                    Iterator<String> pieces = stream.generate(Long.parseLong(given[1]), stops);
                    while (pieces.hasNext()) all.append(pieces.next());
                    System.out.println(String.join(" ", hex(all.toString().getBytes(StandardCharsets.UTF_8)),
                        stream.finishReason().equals("stop") ? "2" : "1", "" + stream.position(),
                        hex(stream.save()), hex(bytes(stream.logits()))));
                }
            }
        }
    }
}
