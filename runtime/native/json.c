/* JSON as artifacts and state files hold it: looked up where it lies, nothing is allocated. Numbers are
 * read and written as Python's json does, to the last digit and whatever the locale: a state file is the
 * same bytes from every language. */

typedef struct {
    const char *at, *end;
} json;

/* Whole numbers of up to LIMBS * 32 bits: what the decimal digits of a double take. */
enum { LIMBS = 48, MOST_DIGITS = 40, MOST_EXPONENT = 400, DEEPEST = 8, NUMBER_BYTES = 32 };
typedef struct {
    uint32_t limb[LIMBS], count; /* the lowest first; no zero on top */
} big;

static void big_times(big *a, uint32_t factor, uint32_t plus) {
    uint64_t carry = plus;
    for (uint32_t i = 0; i < a->count; i++) {
        carry += (uint64_t)a->limb[i] * factor;
        a->limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry && a->count < LIMBS) a->limb[a->count++] = (uint32_t)carry;
}

static void big_shift(big *a, uint32_t bits) {
    for (; bits >= 31; bits -= 31) big_times(a, 1u << 31, 0);
    big_times(a, 1u << bits, 0);
}

static int big_compare(const big *a, const big *b) {
    if (a->count != b->count) return a->count < b->count ? -1 : 1;
    for (uint32_t i = a->count; i-- > 0;)
        if (a->limb[i] != b->limb[i]) return a->limb[i] < b->limb[i] ? -1 : 1;
    return 0;
}

static big big_sum(const big *a, const big *b) {
    big sum = {{0}, 0};
    uint64_t carry = 0;
    uint32_t count = a->count > b->count ? a->count : b->count;
    for (uint32_t i = 0; i < count; i++) {
        carry += (uint64_t)(i < a->count ? a->limb[i] : 0) + (i < b->count ? b->limb[i] : 0);
        sum.limb[sum.count++] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry && sum.count < LIMBS) sum.limb[sum.count++] = (uint32_t)carry;
    return sum;
}

/* a -= b, which is not the greater. */
static void big_subtract(big *a, const big *b) {
    int64_t borrow = 0;
    for (uint32_t i = 0; i < a->count; i++) {
        borrow += (int64_t)a->limb[i] - (i < b->count ? b->limb[i] : 0);
        a->limb[i] = (uint32_t)borrow;
        borrow >>= 32;
    }
    while (a->count && !a->limb[a->count - 1]) a->count--;
}

static big big_of(uint64_t value) {
    big a = {{(uint32_t)value, (uint32_t)(value >> 32)}, value >> 32 ? 2 : value ? 1 : 0};
    return a;
}

static void big_times_ten(big *a, uint32_t power) {
    for (; power; power--) big_times(a, 10, 0);
}

/* The double nearest to digits * 10^exponent, ties to even; infinite beyond the greatest. */
static double nearest_double(big digits, int exponent) {
    big over = big_of(1);
    if (!digits.count) return 0;
    big_times_ten(exponent < 0 ? &over : &digits, (uint32_t)(exponent < 0 ? -exponent : exponent));
    /* digits / over = quotient * 2^power, the quotient of 53 bits or, of the least numbers, fewer. */
    int power = 0;
    big limit = over;
    big_shift(&limit, 53);
    for (; big_compare(&digits, &limit) >= 0; power++) big_shift(&limit, 1), big_shift(&over, 1);
    big half = over;
    big_shift(&half, 52);
    for (; power > -1074 && big_compare(&digits, &half) < 0; power--) big_shift(&digits, 1);
    uint64_t quotient = 0;
    for (int bit = 53; bit >= 0; bit--) {
        big part = over;
        big_shift(&part, (uint32_t)bit);
        if (big_compare(&digits, &part) < 0) continue;
        big_subtract(&digits, &part);
        quotient |= (uint64_t)1 << bit;
    }
    big_shift(&digits, 1);
    int rest = big_compare(&digits, &over);
    quotient += rest > 0 || (rest == 0 && (quotient & 1));
    return scalbn((double)quotient, power);
}

/* The shortest digits that are read as `value`, finite and above 0, the nearest of these: as many as are
 * returned, to be multiplied by 10^exponent after a point before the first (Steele and White 1990). */
static int shortest_digits(double value, char digits[18], int *exponent) {
    int count = 0, low, high;
    uint64_t mantissa;
    memcpy(&mantissa, &value, sizeof mantissa);
    int power = (int)(mantissa >> 52);
    mantissa &= ((uint64_t)1 << 52) - 1;
    if (power) mantissa |= (uint64_t)1 << 52;
    power = (power ? power : 1) - 1075; /* value = mantissa * 2^power */
    int even = !(mantissa & 1), uneven_gap = mantissa == (uint64_t)1 << 52 && power > -1074;
    big rest = big_of(mantissa), unit = big_of(1), below = big_of(1), above;
    big_shift(power < 0 ? &unit : &rest, (uint32_t)(power < 0 ? -power : power));
    if (power > 0) big_shift(&below, (uint32_t)power);
    above = below;
    big_shift(&rest, 1u + (uint32_t)uneven_gap);
    big_shift(&unit, 1u + (uint32_t)uneven_gap);
    big_shift(&above, (uint32_t)uneven_gap);
    /* value = rest / unit; below and above: half the gap to its neighbours. */
    for (power += 52; !(mantissa >> 52); power--) mantissa <<= 1; /* 2^power <= value */
    *exponent = (int)ceil(power * 0.30102999566398120 /* log10(2) */ - 1e-10); /* or one more */
    if (*exponent >= 0) big_times_ten(&unit, (uint32_t)*exponent);
    else {
        big_times_ten(&rest, (uint32_t)-*exponent);
        big_times_ten(&below, (uint32_t)-*exponent);
        big_times_ten(&above, (uint32_t)-*exponent);
    }
    big top = big_sum(&rest, &above);
    if (big_compare(&top, &unit) >= !even) big_times(&unit, 10, 0), ++*exponent;
    do {
        big_times(&rest, 10, 0);
        big_times(&below, 10, 0);
        big_times(&above, 10, 0);
        char digit = '0';
        for (; big_compare(&rest, &unit) >= 0; digit++) big_subtract(&rest, &unit);
        top = big_sum(&rest, &above);
        low = big_compare(&rest, &below) < even;
        high = big_compare(&top, &unit) >= !even;
        digits[count++] = digit;
    } while (!low && !high);
    big twice = rest;
    big_shift(&twice, 1);
    int half = big_compare(&twice, &unit);
    int nearer_up = half > 0 || (half == 0 && (digits[count - 1] & 1));
    if (high && (!low || nearer_up)) digits[count - 1]++;
    return count;
}

/* As Python's repr: returns how many characters, without a NUL. */
static size_t write_double(char *out, double value) {
    char digits[18], *start = out;
    int point, count;
    if (signbit(value)) *out++ = '-', value = -value;
    if (isinf(value)) {
        memcpy(out, "Infinity", 8);
        return (size_t)(out - start) + 8;
    }
    if (value == 0) {
        memcpy(out, "0.0", 3);
        return (size_t)(out - start) + 3;
    }
    count = shortest_digits(value, digits, &point);
    if (point > 16 || point < -3) {
        int power = point - 1, size = power < 0 ? -power : power;
        *out++ = digits[0];
        if (count > 1) *out++ = '.';
        for (int i = 1; i < count; i++) *out++ = digits[i];
        *out++ = 'e';
        *out++ = power < 0 ? '-' : '+';
        if (size >= 100) *out++ = (char)('0' + size / 100);
        *out++ = (char)('0' + size / 10 % 10);
        *out++ = (char)('0' + size % 10);
        return (size_t)(out - start);
    }
    if (point <= 0) *out++ = '0';
    for (int i = 0; i < point; i++) *out++ = i < count ? digits[i] : '0';
    *out++ = '.';
    for (int i = point; i < 0; i++) *out++ = '0';
    if (point >= count) *out++ = '0';
    for (int i = point > 0 ? point : 0; i < count; i++) *out++ = digits[i];
    return (size_t)(out - start);
}

static size_t write_whole(char *out, uint64_t value) {
    char digits[20];
    size_t count = 0;
    do digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    for (size_t i = 0; i < count; i++) out[i] = digits[count - 1 - i];
    return count;
}

/* Reading: each takes what it wants from the front, or returns 0. */

static void skip_space(json *j) {
    while (j->at < j->end && (*j->at == ' ' || *j->at == '\n' || *j->at == '\r' || *j->at == '\t'))
        j->at++;
}

static int take_character(json *j, char wanted) {
    skip_space(j);
    return j->at < j->end && *j->at == wanted && ++j->at;
}

static int take_word(json *j, const char *word) {
    size_t length = strlen(word);
    skip_space(j);
    if ((size_t)(j->end - j->at) < length || memcmp(j->at, word, length)) return 0;
    j->at += length;
    return 1;
}

/* `text`: what stands between the quotes, escapes as they are. */
static int take_string(json *j, json *text) {
    if (!take_character(j, '"')) return 0;
    for (text->at = j->at; j->at < j->end && *j->at != '"'; j->at++)
        if ((unsigned char)*j->at < ' ' || (*j->at == '\\' && ++j->at == j->end)) return 0;
    text->end = j->at;
    return j->at < j->end && ++j->at;
}

static int digit_at(const json *j) { return j->at < j->end && *j->at >= '0' && *j->at <= '9'; }

static int take_digits(json *j, big *digits, int *count) {
    const char *start = j->at;
    for (; digit_at(j); j->at++) {
        if (!digits->count && *j->at == '0') continue;
        if (++*count > MOST_DIGITS) return 0;
        if (!digits->count) *digits = big_of((uint32_t)(*j->at - '0'));
        else big_times(digits, 10, (uint32_t)(*j->at - '0'));
    }
    return j->at > start;
}

/* `value` may be NULL. */
static int take_number(json *j, double *value) {
    big digits = big_of(0);
    int count = 0, exponent = 0, power = 0, sign = take_character(j, '-') ? -1 : 1;
    if (take_word(j, "Infinity")) {
        if (value) *value = sign * (double)INFINITY;
        return 1;
    }
    if (!take_digits(j, &digits, &count)) return 0;
    if (j->at < j->end && *j->at == '.') {
        const char *start = ++j->at;
        if (!take_digits(j, &digits, &count)) return 0;
        exponent = j->at - start > MOST_EXPONENT ? -MOST_EXPONENT : (int)(start - j->at);
    }
    if (j->at < j->end && (*j->at == 'e' || *j->at == 'E')) {
        int down = ++j->at < j->end && *j->at == '-';
        if (j->at < j->end && (*j->at == '-' || *j->at == '+')) j->at++;
        if (!digit_at(j)) return 0;
        for (; digit_at(j); j->at++) power = power > MOST_EXPONENT ? power : power * 10 + *j->at - '0';
        exponent += down ? -power : power;
    }
    if (exponent > MOST_EXPONENT || exponent < -MOST_EXPONENT) return 0;
    if (value) *value = sign * nearest_double(digits, exponent);
    return 1;
}

/* 0 to 2^64 - 1, in digits alone. */
static int take_whole(json *j, uint64_t *value) {
    skip_space(j);
    const char *start = j->at;
    for (*value = 0; digit_at(j); j->at++) {
        uint64_t digit = (uint64_t)(*j->at - '0');
        if (*value > (UINT64_MAX - digit) / 10) return 0;
        *value = *value * 10 + digit;
    }
    return j->at > start && (j->at == j->end || !strchr(".eE", *j->at));
}

static int skip_value(json *j, int depth) {
    json text;
    int object = take_character(j, '{');
    if (object || take_character(j, '[')) {
        const char close = object ? '}' : ']';
        if (depth == DEEPEST) return 0;
        if (take_character(j, close)) return 1;
        do {
            if (object && !(take_string(j, &text) && take_character(j, ':'))) return 0;
            if (!skip_value(j, depth + 1)) return 0;
        } while (take_character(j, ','));
        return take_character(j, close);
    }
    return take_string(j, &text) || take_word(j, "true") || take_word(j, "false") ||
           take_word(j, "null") || take_number(j, NULL);
}

static int is(json text, const char *wanted) {
    size_t length = strlen(wanted);
    return (size_t)(text.end - text.at) == length && !memcmp(text.at, wanted, length);
}

/* The value of a name in an object. */
static int member(json object, const char *name, json *value) {
    json key;
    if (!take_character(&object, '{')) return 0;
    do {
        if (!take_string(&object, &key) || !take_character(&object, ':')) return 0;
        skip_space(&object);
        *value = object;
        if (!skip_value(&object, 0)) return 0;
        value->end = object.at;
        if (is(key, name)) return 1;
    } while (take_character(&object, ','));
    return 0;
}

/* Of values that are taken whole. */
static int member_whole(json object, const char *name, uint64_t *value) {
    json text;
    return member(object, name, &text) && take_whole(&text, value);
}

static int member_number(json object, const char *name, double *value) {
    json text;
    return member(object, name, &text) && take_number(&text, value);
}

static int member_is(json object, const char *name, const char *wanted) {
    json text;
    return member(object, name, &text) && is(text, wanted);
}
