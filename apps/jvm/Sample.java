// Continues a text: java -Djava.library.path=build -cp build Sample MODEL PROMPT SEED

import java.io.PrintStream;
import tsm.Tsm;

public final class Sample {
    public static void main(String[] arguments) throws Exception {
        PrintStream out = new PrintStream(System.out, true, "UTF-8");
        Tsm.Settings settings = new Tsm.Settings();
        settings.seed = Long.parseUnsignedLong(arguments[2]);
        try (Tsm model = Tsm.open(arguments[0]); Tsm.Stream text = model.stream(settings, 0)) {
            text.feed(arguments[1]);
            text.generate(200).forEachRemaining(out::print);
        }
    }
}
