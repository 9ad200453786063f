/* The elementwise work of a decoder layer on bf16, one core's share: what torch does in several passes over memory, with
 * a conversion in each, is done in one. Plain C that a compiler vectorises; `trainer/kernels.py` compiles and calls it,
 * and `trainer/fused.py` has each function's formula, its gradient, and the same in torch.
 *
 * Everything is read as bf16, computed in fp32 and rounded once, to nearest even.
 */
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float up(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline bf16 down(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* e^x to 2e-7, relative: 2^n · e^r with |r| <= ln 2 / 2, and Taylor's series of the latter. Far below zero it is 0, and
 * not a number so small that the processor stumbles over it. */
static inline float exponential(float x) {
    float within = x > 88.0f ? 88.0f : x;
    within = within < -87.0f ? -87.0f : within;
    float n = __builtin_rintf(within * 1.44269504f);
    float r = within - n * 0.693145752f - n * 1.42860677e-6f;
    float series = 8.33333333e-3f + r * 1.38888889e-3f;
    series = 1.66666667e-1f + r * (4.16666667e-2f + r * series);
    series = 1.0f + r * (1.0f + r * (0.5f + r * series));
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : series * power;
}

/* sum = x + more; out = w · sum / rms(sum). Without `more`, sum is x and is not written. */
void add_norm(const bf16 *restrict x, const bf16 *restrict more, const bf16 *restrict w, bf16 *restrict sum,
              bf16 *restrict out, float *restrict inverse, int64_t rows, int64_t width, float eps) {
    for (int64_t row = 0; row < rows; row++, x += width, out += width) {
        const bf16 *here = x;
        if (more) {
            for (int64_t i = 0; i < width; i++) sum[i] = down(up(x[i]) + up(more[i]));
            here = sum;
            sum += width;
            more += width;
        }
        float squares = 0.0f;
        for (int64_t i = 0; i < width; i++) squares += up(here[i]) * up(here[i]);
        float scale = 1.0f / __builtin_sqrtf(squares / (float)width + eps);
        for (int64_t i = 0; i < width; i++) out[i] = down(up(w[i]) * up(down(up(here[i]) * scale)));
        inverse[row] = scale;
    }
}

/* dx = above + (w·g − n · mean(w·g·n)) / rms, dw += Σ g·n, with n = x / rms. `above` is the gradient that comes past. */
void norm_back(const bf16 *restrict g, const bf16 *restrict above, const bf16 *restrict x, const bf16 *restrict w,
               const float *restrict inverse, bf16 *restrict dx, float *restrict dw, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++, g += width, x += width, dx += width) {
        float scale = inverse[row], along = 0.0f;
        for (int64_t i = 0; i < width; i++) {
            float each = up(g[i]) * up(x[i]) * scale;
            along += each * up(w[i]);
            dw[i] += each;
        }
        along /= (float)width;
        if (above) {
            for (int64_t i = 0; i < width; i++)
                dx[i] = down(up(above[i]) + (up(g[i]) * up(w[i]) - up(x[i]) * scale * along) * scale);
            above += width;
        } else {
            for (int64_t i = 0; i < width; i++) dx[i] = down((up(g[i]) * up(w[i]) - up(x[i]) * scale * along) * scale);
        }
    }
}

/* out = gate · σ(gate) · up */
void swiglu(const bf16 *restrict gate, const bf16 *restrict linear, bf16 *restrict out, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        float x = up(gate[i]);
        out[i] = down(x / (1.0f + exponential(-x)) * up(linear[i]));
    }
}

void swiglu_back(const bf16 *restrict g, const bf16 *restrict gate, const bf16 *restrict linear, bf16 *restrict dgate,
                 bf16 *restrict dlinear, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        float x = up(gate[i]), above = up(g[i]), sigmoid = 1.0f / (1.0f + exponential(-x));
        dlinear[i] = down(above * x * sigmoid);
        dgate[i] = down(above * up(linear[i]) * sigmoid * (1.0f + x * (1.0f - sigmoid)));
    }
}

/* Packed tokens (rows, heads · width) to attention's grid (prompts, heads, positions, width), turned by rotary
 * angles where there are any: cos and sin are (rows, width), of which the first half is read. */
void to_grid(const bf16 *restrict x, const bf16 *restrict cos, const bf16 *restrict sin, const int64_t *restrict slots,
             bf16 *restrict grid, int64_t rows, int64_t heads, int64_t positions, int64_t width) {
    int64_t half = width / 2;
    for (int64_t row = 0; row < rows; row++) {
        int64_t prompt = slots[row] / positions, position = slots[row] % positions;
        for (int64_t head = 0; head < heads; head++, x += width) {
            bf16 *out = grid + ((prompt * heads + head) * positions + position) * width;
            if (!cos) {
                memcpy(out, x, (size_t)width * sizeof(bf16));
                continue;
            }
            const bf16 *c = cos + row * width, *s = sin + row * width;
            for (int64_t i = 0; i < half; i++) {
                out[i] = down(up(x[i]) * up(c[i]) - up(x[half + i]) * up(s[i]));
                out[half + i] = down(up(x[half + i]) * up(c[i]) + up(x[i]) * up(s[i]));
            }
        }
    }
}

/* The way back: from the grid to packed tokens, turned back where they were turned. */
void from_grid(const bf16 *restrict grid, const bf16 *restrict cos, const bf16 *restrict sin,
               const int64_t *restrict slots, bf16 *restrict x, int64_t rows, int64_t heads, int64_t positions,
               int64_t width) {
    int64_t half = width / 2;
    for (int64_t row = 0; row < rows; row++) {
        int64_t prompt = slots[row] / positions, position = slots[row] % positions;
        for (int64_t head = 0; head < heads; head++, x += width) {
            const bf16 *in = grid + ((prompt * heads + head) * positions + position) * width;
            if (!cos) {
                memcpy(x, in, (size_t)width * sizeof(bf16));
                continue;
            }
            const bf16 *c = cos + row * width, *s = sin + row * width;
            for (int64_t i = 0; i < half; i++) {
                x[i] = down(up(in[i]) * up(c[i]) + up(in[half + i]) * up(s[i]));
                x[half + i] = down(up(in[half + i]) * up(c[i]) - up(in[i]) * up(s[i]));
            }
        }
    }
}

/* Numbers as integers of the same order, and back: a compiler may not reorder comparisons of what may be no number. */
static inline int32_t in_order(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

static inline float largest(const float *x, int64_t count) {
    int32_t most = INT32_MIN;
    for (int64_t i = 0; i < count; i++) most = in_order(x[i]) > most ? in_order(x[i]) : most;
    most ^= most >> 31 & 0x7fffffff;
    float value;
    memcpy(&value, &most, 4);
    return value;
}

/* In place: softmax(scale · scores + mask) over keys. scores are (prompts, heads, queries, keys), the mask has no heads. */
void softmax(bf16 *restrict scores, const bf16 *restrict mask, int64_t prompts, int64_t heads, int64_t queries,
             int64_t keys, float scale) {
    float row[keys];
    for (int64_t prompt = 0; prompt < prompts; prompt++)
        for (int64_t head = 0; head < heads; head++)
            for (int64_t query = 0; query < queries; query++, scores += keys) {
                const bf16 *seen = mask + (prompt * queries + query) * keys;
                for (int64_t i = 0; i < keys; i++) row[i] = up(scores[i]) * scale + up(seen[i]);
                float most = largest(row, keys), sum = 0.0f;
                for (int64_t i = 0; i < keys; i++) {
                    row[i] = exponential(row[i] - most);
                    sum += row[i];
                }
                float share = 1.0f / sum;
                for (int64_t i = 0; i < keys; i++) scores[i] = down(row[i] * share);
            }
}

/* In place of the gradient of the shares: that of the scores, scale · p · (g − Σ g·p). */
void softmax_back(bf16 *restrict g, const bf16 *restrict shares, int64_t rows, int64_t keys, float scale) {
    for (int64_t row = 0; row < rows; row++, g += keys, shares += keys) {
        float along = 0.0f;
        for (int64_t i = 0; i < keys; i++) along += up(g[i]) * up(shares[i]);
        for (int64_t i = 0; i < keys; i++) g[i] = down(scale * up(shares[i]) * (up(g[i]) - along));
    }
}

/* log softmax(logits · sharpness) at one token a row; and the log of what the exponentials sum up to. */
void choose(const bf16 *restrict logits, const int64_t *restrict chosen, float *restrict logprob, float *restrict norm,
            int64_t rows, int64_t words, float sharpness) {
    float scaled[words];
    for (int64_t row = 0; row < rows; row++, logits += words) {
        for (int64_t i = 0; i < words; i++) scaled[i] = up(logits[i]) * sharpness;
        float most = largest(scaled, words), sum = 0.0f;
        for (int64_t i = 0; i < words; i++) sum += exponential(scaled[i] - most);
        norm[row] = most + __builtin_logf(sum);
        logprob[row] = scaled[chosen[row]] - norm[row];
    }
}

/* In place of the logits: their gradient, g · sharpness · (onehot − softmax). */
void choose_back(bf16 *restrict logits, const int64_t *restrict chosen, const float *restrict g,
                 const float *restrict norm, int64_t rows, int64_t words, float sharpness) {
    for (int64_t row = 0; row < rows; row++, logits += words) {
        float scale = g[row] * sharpness, at = scale * (1.0f - exponential(up(logits[chosen[row]]) * sharpness - norm[row]));
        for (int64_t i = 0; i < words; i++) logits[i] = down(-scale * exponential(up(logits[i]) * sharpness - norm[row]));
        logits[chosen[row]] = down(at);
    }
}

/* total += x */
void accumulate(float *restrict total, const bf16 *restrict x, int64_t count) {
    for (int64_t i = 0; i < count; i++) total[i] += up(x[i]);
}
